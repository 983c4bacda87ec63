// Four variants of one scene side by side: takes that end with it, with a seed each.

import { h, icon, iconButton, moves } from "./dom.js";
import { draw, fetchFrames, framesOf } from "./frames.js";
import { state, takeOf } from "./state.js";
import { t } from "./strings.js";

const LETTERS = ["A", "B", "C", "D"];
let cells = []; // {id, canvas, caption, choose}
let playing = moves();
let played = 0; // milliseconds
let before = 0; // time of the last drawing

export function renderVariants(place, index, actions) {
  const branch = state.draft.branch;
  if (branch?.scene !== index) {
    place.replaceChildren();
    if (!branch) cells = [];
    return;
  }
  const n = index + 1;
  cells = branch.takes.map((id, i) => ({
    id,
    canvas: h("canvas", { role: "img", "aria-label": t("variant", { letter: LETTERS[i] }) }),
    caption: h("span.status"),
    choose: h("button", { type: "button", onclick: () => actions.choose(index, id) }, t("choose", { letter: LETTERS[i] })),
  }));
  place.replaceChildren(
    h(
      "div.variants",
      { role: "group", "aria-label": t("variants_title", { n }) },
      h("div.variants-head", {}, h("h3", {}, t("variants_title", { n })), h("div.scene-buttons", {}, pause(), iconButton("close", t("close_variants"), actions.closeBranch))),
      h("div.grid", {}, ...cells.map(({ canvas, caption, choose }) => h("div.variant", {}, canvas, caption, choose))),
    ),
  );
}

// A button that stops and starts all of them.
function pause() {
  const name = () => (playing ? "pause" : "play");
  const button = iconButton(name(), t(name()), () => {
    playing = !playing;
    button.replaceChildren(icon(name()));
    button.title = t(name());
    button.setAttribute("aria-label", button.title);
  });
  return button;
}

export function updateVariants() {
  for (const { id, caption, choose } of cells) {
    const take = takeOf(id);
    if (take) fetchFrames(take);
    caption.textContent = take ? label(take) : "";
    choose.disabled = take?.status !== "done";
  }
}

function label(take) {
  if (take.status === "failed") return t("status_failed", { error: take.error });
  if (take.status === "stopped") return t("status_stopped_early");
  if (take.status === "making") return t("status_making", take);
  return take.status === "done" ? `${t("seed")} ${take.story.segments[take.until].seed}` : t("state_waiting");
}

// Shows the scene's frames in a loop.
export function playVariants(now) {
  if (playing) played += Math.min(500, now - before);
  before = now;
  for (const { id, canvas } of cells) {
    const take = takeOf(id);
    const [first, end] = take?.spans[take.until] ?? [0, 0];
    const last = Math.min(end, framesOf(take).length);
    if (last > first) draw(canvas, framesOf(take)[first + (Math.floor((played / 1000) * take.fps) % (last - first))]);
  }
}
