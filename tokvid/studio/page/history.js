// The generated videos, newest first.

import { h, iconButton } from "./dom.js";
import { nameOfTask } from "./edit.js";
import { draw, oneFrame } from "./frames.js";
import { isOpen, state, videos } from "./state.js";
import { clock, t } from "./strings.js";
import { statusOf } from "./stage.js";

let actions;
const rows = new Map(); // id → its elements

export function initHistory(all) {
  actions = all;
}

export function renderHistory() {
  rows.clear();
  document.getElementById("history").replaceChildren(
    h("h2", {}, t("history")),
    h("p.empty", {}, t("history_empty")),
    h("ul.rows"),
    h("button.more", { type: "button", hidden: true, onclick: () => actions.older() }, t("history_more")),
  );
  updateHistory();
}

function row(take) {
  const n = take.number;
  const own = {
    canvas: h("canvas", { "aria-hidden": "true", width: 1, height: 1 }),
    status: h("span.status"),
    stop: iconButton("stop", t("stop"), () => actions.stop(own.take)),
  };
  const prompts = [take.task && nameOfTask(take.task), ...take.story.segments.map((scene) => scene.prompt)].filter(Boolean).join(" · ");
  own.open = h(
    "button.row-open",
    { type: "button", "aria-label": `${t("history_open", { n })}: ${prompts}`, onclick: () => actions.show(own.take) },
    own.canvas,
    h("span.row-text", {}, h("span.row-title", {}, `${n}. `, h("bdi", {}, prompts)), own.status),
  );
  own.root = h(
    "li.row",
    {},
    own.open,
    h(
      "div.row-buttons",
      {},
      own.stop,
      iconButton("copy", t(take.task ? "history_settings" : "history_edit", { n }), () => actions.edit(own.take)),
      iconButton("bin", t("history_delete", { n }), () => actions.remove(own.take)),
    ),
  );
  return own;
}

export function updateHistory() {
  const place = document.getElementById("history");
  const list = place.querySelector("ul");
  const shown = videos();
  for (const [id, own] of rows) {
    if (!shown.some((take) => take.id === id)) {
      own.root.remove();
      rows.delete(id);
    }
  }
  shown.forEach((take, index) => {
    if (!rows.has(take.id)) rows.set(take.id, row(take));
    const own = rows.get(take.id);
    own.take = take;
    if (list.children[index] !== own.root) list.insertBefore(own.root, list.children[index] ?? null);
    own.status.textContent = take.status === "done" ? `${clock(take.total / take.fps)} · ${take.weights}` : statusOf(take);
    own.status.classList.toggle("error", take.status === "failed");
    const stopped = own.stop === document.activeElement && !isOpen(take);
    own.stop.hidden = !isOpen(take);
    if (stopped) own.open.focus();
    own.open.setAttribute("aria-current", take.id === state.shown ? "true" : "false");
    thumbnail(own, take);
  });
  place.querySelector("p").hidden = shown.length > 0;
  place.querySelector("button.more").hidden = !state.more;
}

// Focuses the video at an index, or what stands for the history where there is none.
export function focusOnVideo(index) {
  const all = document.querySelectorAll("#history .row-open");
  (all[Math.min(index, all.length - 1)] ?? document.getElementById("history")).focus();
}

async function thumbnail(own, take) {
  if (own.pictured || !take.done || !take.size[0]) return;
  own.pictured = true;
  try {
    draw(own.canvas, await oneFrame(take, Math.floor((take.done - 1) / 2)));
  } catch {
    own.pictured = false;
  }
}
