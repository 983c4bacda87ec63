// Asks for variants of one scene, and takes the one that is chosen.

import { post, remove } from "./api.js";
import { newSeed } from "./dom.js";
import { isComplete, make } from "./make.js";
import { attempt, know } from "./news.js";
import { renderBranch } from "./scenes.js";
import * as store from "./state.js";

const { state } = store;
let actions;

export function initBranch(all) {
  actions = all;
}

// Whether the scenes up to the one that has variants are as they were asked for.
export const branchFits = () => {
  const { branch, scenes } = state.draft;
  const take = store.takeOf(branch.takes[0]);
  if (!take) return true; // not known yet
  const seed = take.story.segments[branch.scene].seed;
  const like = { ...state.draft, scenes: scenes.slice(0, branch.scene + 1).map((scene, i) => (i === branch.scene ? { ...scene, seed } : scene)) };
  return store.alike(like, take) === branch.scene + 1;
};

export async function branch(index) {
  if (!isComplete()) return;
  closeBranch();
  const scene = state.draft.scenes[index];
  const takes = [];
  for (const seed of [scene.seed, newSeed(), newSeed(), newSeed()]) {
    const scenes = state.draft.scenes.map((each) => (each === scene ? { ...each, seed } : each));
    const take = await attempt(() => post("/api/takes", store.wishOf({ ...state.draft, scenes }, index)));
    if (!take) break;
    takes.push(take);
  }
  if (!takes.length) return;
  know([...takes.toReversed(), ...state.takes]);
  state.draft.branch = { scene: index, takes: takes.map((take) => take.id) };
  actions.change([index, "four"]);
}

export async function closeBranch() {
  const ids = state.draft?.branch?.takes ?? [];
  if (!ids.length) return;
  state.draft.branch = null;
  know(state.takes.filter((take) => !ids.includes(take.id)));
  renderBranch();
  store.save();
  await Promise.all(ids.map((id) => remove(`/api/takes/${id}`).catch(() => {})));
}

export async function choose(index, id) {
  state.draft.scenes[index].seed = store.takeOf(id).story.segments[index].seed;
  const closed = closeBranch();
  actions.change([index, "four"]);
  await closed; // the video then gets the next number, not one behind those of the variants
  await make();
}
