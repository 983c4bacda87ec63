// Asks for videos, once all that they need is there.

import { post } from "./api.js";
import { moves, newSeed, toast } from "./dom.js";
import { attempt, know } from "./news.js";
import { focusOn } from "./scenes.js";
import { showFromStart } from "./stage.js";
import * as store from "./state.js";
import { t } from "./strings.js";

const { state } = store;
const at = (id) => document.getElementById(id);
let actions;

export function initMake(all) {
  actions = all;
}

// A second press, or a key that is held down, asks for nothing more.
let asking = false;
export const oneAtATime =
  (work) =>
  async (...values) => {
    if (asking) return;
    asking = true;
    try {
      await work(...values);
    } finally {
      asking = false;
    }
  };

// Whether all scenes are complete; says which is not.
export function isComplete() {
  for (const [index, scene] of state.draft.scenes.entries()) {
    if (!scene.prompt.trim()) {
      toast(t(state.draft.scenes.length > 1 ? "empty_prompt" : "empty_prompt_only", { n: index + 1 }), { error: true });
      focusOn([index, "prompt"]);
      return false;
    }
  }
  const invalid = document.querySelector("#scenes input:invalid");
  if (invalid) {
    const index = [...at("scenes").children].findIndex((each) => each.contains(invalid));
    toast(t("out_of_range", { n: index + 1, ...wanted(invalid) }), { error: true });
    invalid.focus();
  }
  return !invalid;
}

// What a field asks for, in words.
function wanted(input) {
  const field = input.closest("label").querySelector("span").textContent;
  return { field, kind: t(input.step === "1" ? "whole_number" : "number"), low: input.min, high: input.max };
}

export async function make() {
  if (!isComplete()) return;
  const same = store.stories().find((take) => store.isDraft(take) && !["failed", "stopped"].includes(take.status));
  if (same) {
    show(same);
    if (!store.isOpen(same)) toast(t("already"));
    return;
  }
  const stopped = store.stories().find((take) => store.isDraft(take));
  await ask(() => (stopped ? post(`/api/takes/${stopped.id}/resume`) : post("/api/takes", store.wishOf(state.draft))));
}

// Asks for a take, and shows it.
async function ask(request) {
  const take = await attempt(request);
  if (!take) return;
  know([take, ...state.takes.filter((each) => each.id !== take.id)].sort((a, b) => b.number - a.number));
  show(take);
}

export async function makeEdit() {
  const world = store.worldOf(state.draft);
  if (!Object.keys(world.tasks).length) return;
  const { source, task } = state.edit;
  const wrong = document.querySelector("#edit input:invalid");
  const unfit = task === "animate" ? source?.kind !== "picture" && "animated_none" : !source && "edit_no_source";
  if (unfit || wrong) {
    const missing = wrong?.validity.valueMissing && wrong.closest("[data-missing]")?.dataset.missing;
    toast(t(unfit || missing || "edit_invalid", wrong ? wanted(wrong) : {}), { error: true });
    (wrong ?? at("source")).focus();
    return;
  }
  const wish = store.editWish(state.edit, world);
  const same = store.takeOfEdit(wish);
  if (!same) return ask(() => post("/api/edits", wish));
  show(same);
  if (!store.isOpen(same)) toast(t("edit_already"));
}

export function show(take) {
  state.shown = take.id;
  showFromStart();
  store.save();
  actions.update();
  if (matchMedia("(max-width: 60rem)").matches) at("stage").scrollIntoView({ behavior: moves() ? "smooth" : "auto", block: "start" });
}

export function again(index) {
  state.draft.scenes[index].seed = newSeed();
  actions.change([index, "again"]);
  return make();
}
