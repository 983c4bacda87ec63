// The page: starts its parts, and does what they want done.

import { get, post, remove } from "./api.js";
import { branch, branchFits, choose, closeBranch, initBranch } from "./branch.js";
import { closeErrors, keepFocus, toast } from "./dom.js";
import { initEdit, renderEdit, renderModes } from "./edit.js";
import { fetchFrames, newRound, onFrames } from "./frames.js";
import { focusOnVideo, initHistory, renderHistory, updateHistory } from "./history.js";
import { again, initMake, make, makeEdit, oneAtATime, show } from "./make.js";
import { attempt, know, news, noNews, onNews, problem, refresh, SELDOM } from "./news.js";
import { initOpening, renderOpening } from "./opening.js";
import { focusOn, initScenes, renderScenes, updateScenes } from "./scenes.js";
import { initStage, play, renderStage, togglePlay, updateStage } from "./stage.js";
import * as store from "./state.js";
import { t } from "./strings.js";
import { initTelling, renderActions, renderSettings, renderWelcome, updateActions } from "./telling.js";
import { initTop, renderTop, startLanguage } from "./top.js";
import { playVariants } from "./variants.js";

const { state } = store;
const at = (id) => document.getElementById(id);

function update() {
  newRound();
  const take = store.takeOfDraft();
  if (take && take.id !== state.shown) fetchFrames(take);
  updateScenes();
  updateStage();
  updateHistory();
  updateActions();
}

// The draft

function change(focus) {
  if (state.draft.branch && !branchFits()) closeBranch();
  store.save();
  closeErrors();
  at("welcome").hidden = !store.isBlank();
  if (focus) renderScenes(focus);
  else updateScenes();
  updateActions();
}

function takeOver(draft, focus = [0, "prompt"]) {
  closeBranch();
  state.draft = draft;
  render();
  change(focus);
}

// Takes

// An upload, null for none, or undefined where it can't be had, which is said.
async function opening(id) {
  return id && (await attempt(() => get(`/api/uploads/${id}`)));
}

const actions = {
  change,
  takeOver,
  update,
  renderAll,
  make: oneAtATime(make),
  again: oneAtATime(again),
  branch: oneAtATime(branch),
  choose: oneAtATime(choose),
  opening,
  problem,
  show: (take) => (store.isBlank() && !take.task && state.mode !== "edit" ? actions.edit(take) : show(take)),
  closeBranch: () => {
    const index = state.draft.branch.scene;
    closeBranch();
    focusOn([index, "four"]);
  },
  stop: (take) => attempt(() => post(`/api/takes/${take.id}/stop`)).then(refresh),
  goOn: (take) => attempt(() => post(`/api/takes/${take.id}/resume`)).then(refresh),
  edit: async (take) => {
    if (take.task) {
      const [source, first] = await Promise.all([take.opening, take.own.first ?? null].map(opening));
      if (source && first !== undefined) openEditor(store.editOf(take, source, first), take.weights);
      return;
    }
    const begun = await opening(take.opening);
    if (begun === undefined) return;
    setMode("story");
    takeOver(store.draftOf(take, begun));
    show(take);
    toast(t("history_edited", { n: take.number }));
  },
  remove: async (take) => {
    if (!confirm(t("history_delete_sure", { n: take.number }))) return;
    await attempt(() => remove(`/api/takes/${take.id}`));
    if (state.shown === take.id) state.shown = null;
    const index = store.videos().findIndex((each) => each.id === take.id);
    know(state.takes.filter((each) => each.id !== take.id));
    update();
    focusOnVideo(index);
  },
  older: async () => {
    const known = new Set(state.takes.map((take) => take.id));
    const result = await attempt(() => get(`/api/takes?before=${state.takes.at(-1).number}`));
    if (!result) return;
    state.more = result.more;
    news([...state.takes, ...result.takes.filter((take) => !known.has(take.id))]);
  },
  setOpening: (value) => {
    state.draft.opening = value;
    state.draft.larger = store.fitting(store.worldOf(state.draft), value);
    renderOpening();
    change();
  },
  setLarger: (larger) => {
    state.draft.larger = larger;
    change();
  },
  setMode,
  makeEdit: oneAtATime(makeEdit),
  setSource: (value) => newFile(store.rated({ ...state.edit, source: value, box: store.noBox(), path: [], larger: store.fitting(store.worldOf(state.draft), value) })),
  setFirst: (value) => newFile({ ...state.edit, first: value }, "#first"),
  changeEdit: (again) => {
    store.save();
    closeErrors();
    if (!again) return;
    renderEdit();
    at("task").focus();
  },
  editVideo: async (take) => {
    const source = await attempt(() => post(`/api/takes/${take.id}/upload`));
    const larger = Math.floor(take.size[0] / store.worldOf(state.draft).size[0]);
    if (source) openEditor(store.rated({ ...state.edit, source, box: store.noBox(), path: [], larger: Math.min(4, Math.max(1, larger)) }));
  },
};

function setMode(mode) {
  state.mode = mode;
  store.save();
  renderMode();
}

function renderMode() {
  renderModes();
  at("telling").hidden = state.mode === "edit";
  at("edit").hidden = state.mode !== "edit";
}

// Shows that a file of an edit has come or gone. Uploads take their time: who writes meanwhile, or tells a story, isn't disturbed.
function newFile(edit, zone = "#source") {
  state.edit = edit;
  store.save();
  closeErrors();
  keepFocus(at("edit"), renderEdit, zone);
}

// Shows the editor of videos with these settings, and other weights where they are offered.
function openEditor(edit, weights = null) {
  state.edit = edit;
  if (state.facts.weights.some(({ name }) => name === weights)) state.draft.weights = weights;
  setMode("edit");
  renderAll();
  at("task")?.focus();
}

// The rest of the page

function render() {
  renderTop();
  renderMode();
  renderEdit();
  renderWelcome();
  renderOpening();
  renderSettings();
  renderActions();
}

function renderAll() {
  render();
  renderScenes();
  renderStage();
  renderHistory();
}

function listen() {
  document.addEventListener("visibilitychange", () => document.hidden || refresh());
  document.addEventListener("dragover", (event) => event.preventDefault()); // a file dropped beside the
  document.addEventListener("drop", (event) => event.preventDefault()); // zone doesn't replace the page
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      if (state.mode === "edit") actions.makeEdit();
      else actions.make();
    } else if (event.key === " " && ["stage", "story"].includes(event.target.id)) {
      event.preventDefault();
      togglePlay();
    }
  });
}

function animate(now) {
  play(now);
  playVariants(now);
  requestAnimationFrame(animate);
}

async function start() {
  startLanguage();
  for (;;) {
    try {
      state.facts = await get("/api/studio");
      break;
    } catch (error) {
      noNews(error);
      await new Promise((resolve) => setTimeout(resolve, SELDOM));
    }
  }
  if (!store.restore()) state.draft = store.newDraft(state.facts.weights[0]);
  state.edit ??= store.newEdit(store.worldOf(state.draft));
  for (const init of [initBranch, initEdit, initHistory, initMake, initOpening, initScenes, initStage, initTelling]) init(actions);
  onFrames(update);
  onNews(update);
  renderAll();
  initTop(actions);
  listen();
  await refresh();
  if (!store.takeOf(state.shown)) state.shown = store.videos()[0]?.id ?? null;
  update();
  requestAnimationFrame(animate);
}

start();
