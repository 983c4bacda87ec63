// What is around the scenes of a story: the welcome, the settings of all, the bar with Generate.

import { post } from "./api.js";
import { h, toast } from "./dom.js";
import { attempt } from "./news.js";
import * as store from "./state.js";
import { has, t } from "./strings.js";
import { knownWords } from "./words.js";

const { state } = store;
const at = (id) => document.getElementById(id);
let actions;

export function initTelling(all) {
  actions = all;
}

export function renderWelcome() {
  const world = store.worldOf(state.draft);
  const about = has(`about_${world.name}`) && world.shipped ? `about_${world.name}` : "about_other";
  const example = async () => {
    const picture = world.example_picture ? await attempt(() => post(`/api/examples/${world.name}`)) : null;
    if (picture !== undefined) actions.takeOver(store.exampleDraft(world, picture));
  };
  at("welcome").replaceChildren(
    h(
      "div.welcome.panel",
      {},
      h("h2", {}, t("welcome_title")),
      h("p", {}, t("welcome_text")),
      h("ol", {}, h("li", {}, t("welcome_1")), h("li", {}, t("welcome_2")), h("li", {}, t("welcome_3"))),
      h("p.hint", {}, t(about)),
      world.example.length ? h("button", { type: "button", onclick: example }, t("load_example")) : null,
    ),
  );
  at("welcome").hidden = !store.isBlank();
}

export function renderSettings() {
  const { draft } = state;
  const rates = [...new Set([...store.worldOf(draft).rates, draft.fps])].sort((a, b) => a - b);
  const fps = h("select", { onchange: () => ((draft.fps = Number(fps.value)), actions.change()) }, ...rates.map((rate) => h("option", { value: `${rate}`, selected: rate === draft.fps }, `${rate}`)));
  const negative = h("input", { type: "text", dir: "auto", maxlength: "2000", value: draft.negative, title: t("negative_hint"), oninput: () => ((draft.negative = negative.value), actions.change()) });
  const open = at("settings").querySelector("details")?.open ?? false;
  at("settings").replaceChildren(
    h(
      "details.settings",
      { open },
      h("summary", {}, t("settings")),
      h("div.numbers", {}, h("label", {}, h("span", {}, t("fps")), fps), h("label.wide", {}, h("span", {}, t("negative")), negative)),
    ),
    knownWords(store.worldOf(draft)),
  );
}

export function renderActions() {
  at("actions").replaceChildren(
    h("button.primary", { type: "button", id: "make", title: "Ctrl+Enter", onclick: actions.make }, t("make")),
    h("button", { type: "button", onclick: fresh }, t("new_story")),
    h("span.total", { id: "total" }),
  );
  updateActions();
}

function fresh() {
  const world = store.worldOf(state.draft);
  const { branch: _, ...before } = state.draft;
  actions.takeOver(store.newDraft(world));
  toast(t("new_story_done"), { action: [t("undo"), () => actions.takeOver({ ...before, branch: null })] });
}

export function updateActions() {
  const { scenes, fps } = state.draft;
  const seconds = scenes.reduce((sum, scene) => sum + scene.seconds, 0);
  const count = scenes.length === 1 ? t("scenes_one") : t("scenes_many", { n: scenes.length });
  if (at("total")) at("total").textContent = t("total", { scenes: count, seconds: Number(seconds.toFixed(2)), frames: Math.round(seconds * fps) });
}
