// The picture or clip that a story begins with.

import { upload } from "./api.js";
import { h } from "./dom.js";
import { state } from "./state.js";
import { t } from "./strings.js";

let actions;

export function initOpening(all) {
  actions = all;
}

export function renderOpening() {
  const { opening } = state.draft;
  const input = h("input.hidden-text", { type: "file", id: "file", accept: "image/*,video/*,.mkv,.flv,.ts", onchange: () => input.files[0] && send(input.files[0]) });
  const status = h("span.status", { role: "status" });
  const about = opening
    ? t(`opening_${opening.kind}`, { ...opening, seconds: opening.seconds.toFixed(1) })
    : t("opening_none");
  const zone = h(
    "div.opening.panel",
    { role: "group", "aria-label": t("opening_title") },
    opening && h("img", { src: `/api/uploads/${opening.id}/picture`, alt: opening.name }),
    h(
      "div.opening-text",
      {},
      h("h2", {}, t("opening_title")),
      h("p", {}, about),
      h(
        "p.opening-choose",
        {},
        input,
        h("label.button", { for: "file" }, t("opening_choose")),
        opening && h("button", { type: "button", onclick: () => actions.setOpening(null) }, t("remove")),
        status,
      ),
      !opening && h("p.hint", {}, t("opening_drop", { mib: state.facts.limits.upload / 2 ** 20 })),
    ),
  );
  zone.addEventListener("dragover", (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    if (event.dataTransfer.files[0]) send(event.dataTransfer.files[0]);
  });
  document.getElementById("opening").replaceChildren(zone);

  async function send(file) {
    try {
      const sent = (share) => (status.textContent = share < 1 ? t("uploading", { percent: Math.floor(100 * share) }) : t("checking"));
      sent(0);
      actions.setOpening(await upload(file, state.facts.limits.upload, sent));
    } catch (problem) {
      status.textContent = "";
      actions.problem(problem);
    }
    input.value = "";
  }
}
