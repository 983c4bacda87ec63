// The page's state: the server's facts, the takes, the edited draft. The draft survives a reload and a closed tab.

import { spaced } from "./path.js";

export const state = {
  facts: null, // of GET /api/studio
  takes: [], // newest first
  more: false, // whether the server has older ones
  draft: null,
  shown: null, // the id of the take on the stage
  mode: "story", // or "edit"
  edit: null, // of a video
};

let nextKey = 1;

export const worldOf = (draft) => state.facts.weights.find((each) => each.name === draft.weights) ?? state.facts.weights[0];

export function newScene(world, like) {
  return {
    key: nextKey++,
    prompt: "",
    seconds: like?.seconds ?? world.example[0]?.seconds ?? 3,
    guidance: like?.guidance ?? world.defaults.guidance,
    seed: like ? (like.seed + 1) % 2 ** 32 : 1,
  };
}

export function newDraft(world) {
  const { fps, scheme, sampling } = world.defaults;
  return { weights: world.name, fps, scheme, sampling, negative: "", opening: null, larger: 1, scenes: [newScene(world)], branch: null };
}

export function exampleDraft(world, opening) {
  return { ...newDraft(world), scenes: world.example.map(duplicate), opening, larger: fitting(world, opening) };
}

// How many times the weights' size a video of what is given may well have: 2 where that is as large.
export const fitting = ({ size }, given) => (given && given.height >= 2 * size[0] && given.width >= 2 * size[1] ? 2 : 1);

// A draft's scenes with other weights, and the settings that suit these.
export const withWeights = ({ scenes, opening, negative }, world) => ({ ...newDraft(world), scenes, opening, negative });

// Whether nothing has been written yet.
export const isBlank = () => state.draft.scenes.length === 1 && !state.draft.scenes[0].prompt && !state.draft.opening;

// A draft as it is where its weights are offered, else with the first ones: they may have gone with an earlier server.
const offered = (draft) => (state.facts.weights.some(({ name }) => name === draft.weights) ? draft : withWeights(draft, state.facts.weights[0]));

export function draftOf(take, opening) {
  const { fps, segments, negative = "", scheme = null, sampling = {} } = take.story;
  return offered({ weights: take.weights, fps, scheme, sampling, negative, opening, larger: take.larger, scenes: segments.map(duplicate), branch: null });
}

export const duplicate = (scene) => ({ ...scene, key: nextKey++ });

// The body of a request for a take.
export function wishOf(draft, until = null) {
  const { weights, fps, scheme, sampling, negative, opening } = draft;
  const larger = opening ? draft.larger : 1;
  const scenes = draft.scenes.map(({ prompt, seconds, guidance, seed }) => ({ prompt, seconds, guidance, seed }));
  return { weights, fps, scheme, sampling, negative, scenes, opening: opening?.id ?? null, larger, until };
}

// Left, top, width and height of a box that is still to be drawn.
export const noBox = () => [null, null, null, null];

export function newEdit(world) {
  const [task, about] = Object.entries(world.tasks)[0] ?? ["", world.defaults];
  return { task, source: null, prompt: "", fps: world.defaults.fps, guidance: about.guidance, seed: 1, box: noBox(), canvas: "16:9", times: 2, strength: 0.5, factor: 2, draws: 1, first: null, path: [], seconds: 3, larger: 1 };
}

// An edit as it was asked for, with its uploads.
export function editOf(take, source, first) {
  const { fps, guidance, seed, segments } = take.story;
  const { track, ...own } = take.own;
  const path = track ? { path: track.points.map(([point]) => point), seconds: track.points.length / track.fps } : {};
  return { ...newEdit(state.facts.weights[0]), ...own, ...path, first, larger: take.larger, task: take.task, source, prompt: segments[0].prompt, fps, guidance, seed };
}

// An edit at its clip's own rate, within those of the weights where frames are only taken from it.
export function rated(edit) {
  const { rates } = worldOf(state.draft);
  const fps = edit.source?.fps || edit.fps; // a picture has none
  return { ...edit, fps: edit.task === "interpolation" ? fps : Math.min(Math.max(fps, rates[0]), rates.at(-1)) };
}

// Whether an edit's video may be larger than the weights' own.
export const mayBeLarger = ({ task, first }, world) => world.tasks[task].larger || (first && world.tasks[task].settings.includes("first"));

// The points of each frame, or undefined where no path is drawn.
function trackOf({ path, seconds, fps }) {
  if (path.length < 2) return undefined;
  return { fps, points: spaced(path, Math.max(2, Math.round(seconds * fps))).map((point) => [point]) };
}

// The body of a request for an edit: of the settings of single tasks, those of its own.
export function editWish(edit, world) {
  const { task, source, prompt, fps, guidance, seed } = edit;
  const all = { ...edit, first: edit.first?.id, track: trackOf(edit) };
  const own = world.tasks[task].settings.filter((name) => all[name] !== undefined).map((name) => [name, all[name]]);
  const larger = mayBeLarger(edit, world) ? edit.larger : 1;
  return { weights: world.name, task, source: source.id, prompt, fps, guidance, seed, larger, ...Object.fromEntries(own) };
}

// The take that is just this edit, if any.
export const takeOfEdit = (wish) =>
  state.takes.find(({ weights, task, opening, story, own, larger, status }) => {
    if (!task || ["failed", "stopped"].includes(status)) return false;
    const { fps, guidance, seed, segments } = story;
    return sorted({ weights, task, source: opening, prompt: segments[0].prompt, fps, guidance, seed, larger, ...own }) === sorted(wish);
  });

const STORE = "tokvid.draft";

export function save() {
  try {
    const { draft, shown, mode, edit } = state;
    const text = JSON.stringify({ draft, shown, mode, edit });
    sessionStorage.setItem(STORE, text);
    localStorage.setItem(STORE, text);
  } catch {
    // without storage the draft ends with the tab
  }
}

export function restore() {
  try {
    const { draft, shown, mode, edit } = JSON.parse(sessionStorage.getItem(STORE) ?? localStorage.getItem(STORE));
    if (!draft.scenes.length) return false;
    state.draft = offered({ larger: 1, ...draft, scenes: draft.scenes.map(duplicate) }); // an earlier version's has no size
    state.shown = shown;
    if (edit) Object.assign(state, { mode, edit: { larger: 1, first: null, path: [], seconds: 3, ...edit, box: edit.box ?? noBox() } });
    return true;
  } catch {
    return false;
  }
}

export const takeOf = (id) => state.takes.find((each) => each.id === id);

// Takes of whole stories and edits; the others are variants of one scene.
export const videos = () => state.takes.filter((take) => take.until === null);
export const stories = () => videos().filter((take) => !take.task);

const isPlain = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const sorted = (value) => JSON.stringify(value, (_, each) => (isPlain(each) ? Object.fromEntries(Object.entries(each).sort()) : each));
const text = (scene) => JSON.stringify([scene.prompt, scene.seconds, scene.guidance, scene.seed]);

// How many of the draft's first scenes the story of a take has exactly as they are now.
export function alike(draft, take) {
  if (!take || take.weights !== draft.weights || take.opening !== (draft.opening?.id ?? null)) return 0;
  const { fps, segments, negative = "", scheme = null, sampling = {} } = take.story;
  if (take.larger !== (draft.opening ? draft.larger : 1)) return 0;
  if (fps !== draft.fps || negative !== draft.negative || scheme !== draft.scheme) return 0;
  if (sorted(sampling) !== sorted(draft.sampling)) return 0;
  const differs = draft.scenes.findIndex((scene, i) => !segments[i] || text(segments[i]) !== text(scene));
  return differs < 0 ? draft.scenes.length : differs;
}

export const isDraft = (take) =>
  take.story.segments.length === state.draft.scenes.length && alike(state.draft, take) === state.draft.scenes.length;

// The take to which the draft's cards belong: the newest with most of its first scenes.
export function takeOfDraft() {
  let best = null;
  let most = 0;
  for (const take of stories()) {
    const count = alike(state.draft, take);
    if (count > most) [best, most] = [take, count];
  }
  return best;
}

export const isRunning = (take) => ["loading", "making", "saving"].includes(take?.status);
export const isOpen = (take) => take?.status === "waiting" || isRunning(take);
