// What uploads are for: the picture or clip that a story begins with, or the video to edit.

import { upload } from "./api.js";
import { h, keepFocus } from "./dom.js";
import { state, worldOf } from "./state.js";
import { t } from "./strings.js";

let actions;

export function initOpening(all) {
  actions = all;
}

export function renderOpening() {
  const { opening } = state.draft;
  const about = opening ? t(`opening_${opening.kind}`, { ...opening, seconds: opening.seconds.toFixed(1) }) : t("opening_none");
  const zone = uploadZone({ id: "file", title: t("opening_title"), upload: opening, about, set: actions.setOpening, problem: actions.problem });
  if (opening) zone.querySelector(".opening-choose").append(sizes(worldOf(state.draft), state.draft, actions.setLarger));
  const place = document.getElementById("opening");
  keepFocus(place, () => place.replaceChildren(zone), "#file");
}

// A choice of the video's size: that of the weights, or a multiple, which keeps the detail of what is given.
export function sizes(world, { larger }, set) {
  const [height, width] = world.size;
  const each = (times) => h("option", { value: `${times}`, selected: times === larger }, `${times * width}×${times * height}`);
  const select = h("select", { title: t("size_hint"), onchange: () => set(Number(select.value)) }, ...[1, 2, 3, 4].map(each));
  return h("label.inline", {}, h("span", {}, t("size")), select);
}

// A panel to which a file is dropped, or chosen, a `picture` or also a clip; `set` gets its upload, or null to remove it.
export function uploadZone({ id, title, upload: current, about, picture = false, set, problem }) {
  const input = h("input.hidden-text", { type: "file", id, accept: picture ? "image/*" : "image/*,video/*,.mkv,.flv,.ts", onchange: () => input.files[0] && send(input.files[0]) });
  const status = h("span.status", { role: "status" });
  const zone = h(
    "div.opening.panel",
    { role: "group", "aria-label": title },
    current && h("img", { src: `/api/uploads/${current.id}/picture`, alt: current.name }),
    h(
      "div.opening-text",
      {},
      h("h2", {}, title),
      h("p", {}, about),
      h(
        "p.opening-choose",
        {},
        input,
        h("label.button", { for: id }, t(picture ? "choose_picture" : "opening_choose")),
        current && h("button", { type: "button", onclick: () => set(null) }, t("remove")),
        status,
      ),
      !current && h("p.hint", {}, t(picture ? "drop_picture" : "opening_drop", { mib: state.facts.limits.upload / 2 ** 20 })),
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
  return zone;

  async function send(file) {
    try {
      const sent = (share) => (status.textContent = share < 1 ? t("uploading", { percent: Math.floor(100 * share) }) : t("checking"));
      sent(0);
      set(await upload(file, state.facts.limits.upload, sent));
    } catch (error) {
      status.textContent = "";
      problem(error);
    }
    input.value = "";
  }
}
