// The page: starts its parts, asks the server for news, and does what they want done.

import { get, post, remove } from "./api.js";
import { announce, closeErrors, closeToasts, h, icon, keepFocus, moves, newSeed, toast } from "./dom.js";
import { initEdit, renderEdit, renderModes } from "./edit.js";
import { fetchFrames, onFrames } from "./frames.js";
import { focusOnVideo, initHistory, renderHistory, updateHistory } from "./history.js";
import { initOpening, renderOpening } from "./opening.js";
import { focusOn, initScenes, renderBranch, renderScenes, updateScenes } from "./scenes.js";
import { initStage, play, renderStage, showFromStart, togglePlay, updateStage } from "./stage.js";
import * as store from "./state.js";
import { chooseLanguage, has, languageNow, t } from "./strings.js";
import { playVariants } from "./variants.js";
import { knownWords } from "./words.js";

const { state } = store;
const OFTEN = 400; // milliseconds between questions while something is being generated
const SELDOM = 3000;
const THEMES = ["system", "light", "dark"];
const at = (id) => document.getElementById(id);
const saved = (name) => {
  try {
    return localStorage.getItem(`tokvid.${name}`);
  } catch {
    return null;
  }
};
const keep = (name, value) => {
  try {
    localStorage.setItem(`tokvid.${name}`, value);
  } catch {
    // holds until the next reload
  }
};

// News

let timer;

function scheduled() {
  clearTimeout(timer);
  timer = setTimeout(refresh, state.takes.some(store.isOpen) && !document.hidden ? OFTEN : SELDOM);
}

async function refresh() {
  try {
    const { takes, more } = await get("/api/takes");
    at("offline").hidden = true;
    const last = takes.at(-1)?.number ?? 0;
    const older = state.takes.filter((take) => more && take.number < last);
    if (!older.length) state.more = more;
    news([...takes, ...older.filter((take) => !takes.some((each) => each.id === take.id))]);
  } catch (error) {
    at("offline").hidden = error.code !== "offline";
    if (error.code !== "offline") problem(error);
  }
  scheduled();
}

function news(takes) {
  const ended = takes.filter((take) => take.until === null && ["done", "failed"].includes(take.status) && store.isOpen(store.takeOf(take.id)));
  if (ended.length) announce(ended.map((take) => t(take.status === "done" ? "made" : "not_made", { n: take.number, error: take.error })).join(" "));
  state.takes = takes;
  update();
}

function update() {
  const take = store.takeOfDraft();
  if (take && take.id !== state.shown) fetchFrames(take);
  updateScenes();
  updateStage();
  updateHistory();
  updateActions();
}

async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    problem(error);
  }
}

// A second press, or a key that is held down, asks for nothing more.
let asking = false;
const oneAtATime =
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

function problem(error) {
  const values = { message: error.message, mib: state.facts ? state.facts.limits.upload / 2 ** 20 : "" };
  toast(has(`error_${error.code}`) ? t(`error_${error.code}`, values) : error.message, { error: true });
}

// The draft

function change(focus) {
  if (state.draft.branch && !branchFits()) closeBranch();
  store.save();
  closeErrors();
  at("welcome").hidden = !isBlank();
  if (focus) renderScenes(focus);
  else updateScenes();
  updateActions();
}

const isBlank = () => state.draft.scenes.length === 1 && !state.draft.scenes[0].prompt && !state.draft.opening;

function takeOver(draft, focus = [0, "prompt"]) {
  closeBranch();
  state.draft = draft;
  render();
  change(focus);
}

// Whether all scenes are complete; says which is not.
function isComplete() {
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

async function make() {
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
  state.takes = [take, ...state.takes.filter((each) => each.id !== take.id)].sort((a, b) => b.number - a.number);
  show(take);
  scheduled();
}

async function makeEdit() {
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

function show(take) {
  state.shown = take.id;
  showFromStart();
  store.save();
  update();
  if (matchMedia("(max-width: 60rem)").matches) at("stage").scrollIntoView({ behavior: moves() ? "smooth" : "auto", block: "start" });
}

function again(index) {
  state.draft.scenes[index].seed = newSeed();
  change([index, "again"]);
  return make();
}

// Variants

const branchFits = () => {
  const { branch, scenes } = state.draft;
  const take = store.takeOf(branch.takes[0]);
  if (!take) return true; // not known yet
  const seed = take.story.segments[branch.scene].seed;
  const like = { ...state.draft, scenes: scenes.slice(0, branch.scene + 1).map((scene, i) => (i === branch.scene ? { ...scene, seed } : scene)) };
  return store.alike(like, take) === branch.scene + 1;
};

async function branch(index) {
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
  state.takes = [...takes.toReversed(), ...state.takes];
  state.draft.branch = { scene: index, takes: takes.map((take) => take.id) };
  change([index, "four"]);
  scheduled();
}

async function closeBranch() {
  const ids = state.draft?.branch?.takes ?? [];
  if (!ids.length) return;
  state.draft.branch = null;
  state.takes = state.takes.filter((take) => !ids.includes(take.id));
  renderBranch();
  store.save();
  await Promise.all(ids.map((id) => remove(`/api/takes/${id}`).catch(() => {})));
}

async function choose(index, id) {
  state.draft.scenes[index].seed = store.takeOf(id).story.segments[index].seed;
  const closed = closeBranch();
  change([index, "four"]);
  await closed; // the video then gets the next number, not one behind those of the variants
  await make();
}

// Takes

async function opening(id) {
  return id && (await attempt(() => get(`/api/uploads/${id}`)));
}

const actions = {
  change,
  make: oneAtATime(make),
  again: oneAtATime(again),
  branch: oneAtATime(branch),
  choose: oneAtATime(choose),
  opening,
  problem,
  show: (take) => (isBlank() && !take.task && state.mode !== "edit" ? actions.edit(take) : show(take)),
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
      if (source) openEditor(store.editOf(take, source, first), take.weights);
      return;
    }
    setMode("story");
    takeOver(store.draftOf(take, await opening(take.opening)));
    show(take);
    toast(t("history_edited", { n: take.number }));
  },
  remove: async (take) => {
    if (!confirm(t("history_delete_sure", { n: take.number }))) return;
    await attempt(() => remove(`/api/takes/${take.id}`));
    if (state.shown === take.id) state.shown = null;
    const index = store.videos().findIndex((each) => each.id === take.id);
    state.takes = state.takes.filter((each) => each.id !== take.id);
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

function renderWelcome() {
  const world = store.worldOf(state.draft);
  const about = has(`about_${world.name}`) && world.shipped ? `about_${world.name}` : "about_other";
  const example = async () => {
    const picture = world.example_picture ? await attempt(() => post(`/api/examples/${world.name}`)) : null;
    if (picture !== undefined) takeOver(store.exampleDraft(world, picture));
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
  at("welcome").hidden = !isBlank();
}

function renderSettings() {
  const { draft } = state;
  const rates = [...new Set([...store.worldOf(draft).rates, draft.fps])].sort((a, b) => a - b);
  const fps = h("select", { onchange: () => ((draft.fps = Number(fps.value)), change()) }, ...rates.map((rate) => h("option", { value: `${rate}`, selected: rate === draft.fps }, `${rate}`)));
  const negative = h("input", { type: "text", dir: "auto", maxlength: "2000", value: draft.negative, title: t("negative_hint"), oninput: () => ((draft.negative = negative.value), change()) });
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

function renderActions() {
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
  takeOver(store.newDraft(world));
  toast(t("new_story_done"), { action: [t("undo"), () => takeOver({ ...before, branch: null })] });
}

function updateActions() {
  const { scenes, fps } = state.draft;
  const seconds = scenes.reduce((sum, scene) => sum + scene.seconds, 0);
  const count = scenes.length === 1 ? t("scenes_one") : t("scenes_many", { n: scenes.length });
  if (at("total")) at("total").textContent = t("total", { scenes: count, seconds: Number(seconds.toFixed(2)), frames: Math.round(seconds * fps) });
}

function renderTop() {
  for (const element of document.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of document.querySelectorAll("[data-label]")) element.setAttribute("aria-label", t(element.dataset.label));
  at("offline").textContent = t("offline");
  at("language").textContent = t("other_language");
  at("language").lang = languageNow() === "zh" ? "en" : "zh-CN";
  const theme = document.documentElement.dataset.theme ?? "system";
  at("theme").replaceChildren(icon({ system: "system", light: "sun", dark: "moon" }[theme]));
  at("theme").title = t(`theme_${theme}`);
  at("theme").setAttribute("aria-label", t(`theme_${theme}`));
  at("weights").replaceChildren(...state.facts.weights.map(({ name }) => h("option", { value: name, selected: name === state.draft.weights }, name)));
}

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
  at("language").addEventListener("click", () => {
    chooseLanguage(languageNow() === "zh" ? "en" : "zh");
    keep("language", languageNow());
    closeToasts();
    renderAll();
  });
  at("theme").addEventListener("click", () => {
    const theme = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme ?? "system") + 1) % THEMES.length];
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    keep("theme", theme);
    renderTop();
  });
  at("weights").addEventListener("change", () => {
    const world = state.facts.weights.find((each) => each.name === at("weights").value);
    takeOver(store.withWeights(state.draft, world));
    at("weights").focus();
  });
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
  chooseLanguage(saved("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en"));
  for (;;) {
    try {
      state.facts = await get("/api/studio");
      break;
    } catch (error) {
      at("offline").textContent = error.code === "offline" ? t("offline") : error.message;
      at("offline").hidden = false;
      await new Promise((resolve) => setTimeout(resolve, SELDOM));
    }
  }
  if (!store.restore()) state.draft = store.newDraft(state.facts.weights[0]);
  state.edit ??= store.newEdit(store.worldOf(state.draft));
  for (const init of [initEdit, initScenes, initStage, initHistory, initOpening]) init(actions);
  onFrames(update);
  renderAll();
  listen();
  await refresh();
  if (!store.takeOf(state.shown)) state.shown = store.videos()[0]?.id ?? null;
  update();
  requestAnimationFrame(animate);
}

start();
