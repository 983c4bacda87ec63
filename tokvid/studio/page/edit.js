// Editing a video: an upload, a task that the weights know, and what the task asks for.

import { drawBox, initBox } from "./box.js";
import { h, iconButton, keepFocus, newSeed } from "./dom.js";
import { sizes, uploadZone } from "./opening.js";
import { drawPath, initPath } from "./path.js";
import { mayBeLarger, rated, state, worldOf } from "./state.js";
import { has, t } from "./strings.js";
import { knownWords, wordsNote } from "./words.js";

const CANVASES = ["2:1", "16:9", "4:3", "3:4", "9:16", "1:2"];
let actions;

export function initEdit(all) {
  actions = all;
}

export const nameOfTask = (task) => (has(`task_${task}`) ? t(`task_${task}`) : task);

// Story or edit: two buttons above the editor, where any of the weights know a task.
export function renderModes() {
  const place = document.getElementById("modes");
  place.hidden = !state.facts.weights.some(({ tasks }) => Object.keys(tasks).length);
  const button = (mode) => h("button", { type: "button", "aria-pressed": `${state.mode === mode}`, onclick: () => actions.setMode(mode) }, t(`mode_${mode}`));
  keepFocus(place, () => place.replaceChildren(...["story", "edit"].map(button)));
}

export function renderEdit() {
  const place = document.getElementById("edit");
  const world = worldOf(state.draft);
  const tasks = Object.keys(world.tasks);
  if (!tasks.length) {
    const names = state.facts.weights.filter((each) => Object.keys(each.tasks).length).map(({ name }) => name);
    place.replaceChildren(h("p.panel", {}, t("edit_unknown", { name: world.name, others: names.join(", ") })));
    return;
  }
  const { edit } = state;
  if (!tasks.includes(edit.task)) chooseTask(edit, world, tasks[0]);
  place.replaceChildren(source(edit), form(edit, world, tasks), bar());
}

function chooseTask(edit, world, task) {
  const others = [edit.task, task].filter((each) => each === "interpolation").length === 1; // rates
  const chosen = { ...edit, task, guidance: world.tasks[task].guidance };
  Object.assign(edit, others ? rated(chosen) : chosen);
}

function source(edit) {
  const picture = edit.task === "animate";
  const [title, none] = picture ? [t("animated_title"), t("animated_none")] : [t("source_title"), t("source_none")];
  const about = edit.source ? t(`source_${edit.source.kind}`, { ...edit.source, seconds: edit.source.seconds.toFixed(1) }) : none;
  return uploadZone({ id: "source", title, upload: edit.source, about, picture, set: actions.setSource, problem: actions.problem });
}

function form(edit, world, tasks) {
  const task = h("select", { id: "task", onchange: () => (chooseTask(edit, world, task.value), actions.changeEdit(true)) }, ...tasks.map((name) => h("option", { value: name, selected: name === edit.task }, nameOfTask(name))));
  const prompt = h("textarea", { id: "edit-prompt", rows: "2", dir: "auto", maxlength: "2000", placeholder: t("edit_prompt_hint"), value: edit.prompt, oninput: () => ((edit.prompt = prompt.value), actions.changeEdit()) });
  const { help, settings } = world.tasks[edit.task];
  const hint = has(`taskhint_${edit.task}`) ? t(`taskhint_${edit.task}`) : help;
  return h(
    "div.panel.edit",
    {},
    h("label.stacked", {}, h("span", {}, t("task")), task),
    h("p.hint", {}, hint),
    ...Object.keys(OWN)
      .filter((name) => settings.includes(name))
      .map((name) => OWN[name](edit, world)),
    h("label.stacked", {}, h("span", {}, t("edit_prompt")), prompt),
    wordsNote(prompt, "edit-words"),
    knownWords(world),
    numbers(edit, world),
  );
}

const options = (values, chosen, shown = (value) => value) => values.map((value) => h("option", { value: `${value}`, selected: value === chosen }, `${shown(value)}`));

function numbers(edit, world) {
  const rates = [...new Set([...world.rates, edit.fps])].sort((a, b) => a - b);
  const fps = h("select", { onchange: () => ((edit.fps = Number(fps.value)), actions.changeEdit()) }, ...options(rates, edit.fps, (rate) => Number(rate.toFixed(2))));
  const guidance = number(edit, "guidance", 0, 100, "any", t("guidance_hint"));
  const seed = number(edit, "seed", 0, 2 ** 32 - 1, "1", "");
  const dice = iconButton("dice", t("new_seed"), () => {
    seed.value = edit.seed = newSeed();
    actions.changeEdit();
  });
  return h(
    "div.numbers",
    {},
    h("label", {}, h("span", {}, t("fps")), fps),
    h("label", {}, h("span", {}, t("guidance")), guidance),
    h("label", {}, h("span", {}, t("seed")), h("span.joined", {}, seed, dice)),
    mayBeLarger(edit, world) ? sizes(world, edit, (larger) => ((edit.larger = larger), actions.changeEdit())) : "",
  );
}

function number(object, name, low, high, step, hint, onchange = actions.changeEdit) {
  const input = h("input", { type: "number", min: `${low}`, max: `${high}`, step, value: `${object[name] ?? ""}`, title: hint, inputmode: "decimal", required: true });
  input.addEventListener("input", () => {
    if (!input.checkValidity()) return;
    object[name] = input.valueAsNumber;
    onchange();
  });
  return input;
}

// What single tasks ask for.
const OWN = {
  first,
  box,
  canvas: (edit) => chosen(edit, "canvas", CANVASES),
  times: (edit) => chosen(edit, "times", [2, 4, 8]),
  strength,
  track,
  factor: (edit) => chosen(edit, "factor", [2, 4, 8]),
  draws: (edit) => chosen(edit, "draws", [1, 4, 8, 16]),
};

// The first frame as it should look, where there is one.
function first(edit) {
  const about = edit.first ? t("first_about", edit.first) : t("first_none");
  return uploadZone({ id: "first", title: t("first_title"), upload: edit.first, about, picture: true, set: actions.setFirst, problem: actions.problem });
}

// A box by pointer on the first frame, or by numbers.
function box(edit) {
  if (!edit.source) return h("p.hint", {}, t("box_later"));
  const { width, height } = edit.source;
  const whole = [width, height, width, height];
  const canvas = h("canvas.frame", { role: "img", "aria-label": t("box_frame") });
  const fields = ["left", "top", "width", "height"].map((name, i) => {
    const input = number(edit.box, i, i < 2 ? 0 : 1, whole[i], "1", "", () => show());
    return { input, label: h("label", {}, h("span", {}, t(`box_${name}`)), input) };
  });
  function show(all) {
    fields.forEach(({ input }, i) => {
      if (all) input.value = `${edit.box[i]}`;
      const most = whole[i] - (i < 2 ? 1 : (edit.box[i - 2] ?? 0)); // within the frame
      input.max = `${most}`;
    });
    drawBox(canvas, edit.box);
    actions.changeEdit();
  }
  initBox(canvas, edit.source, edit.box, (drawn) => {
    drawn.forEach((value, i) => (edit.box[i] = value));
    show(true);
  });
  return h("div.boxed", { "data-missing": "edit_missing" }, h("p.hint", {}, t("box_hint")), canvas, h("div.numbers", {}, ...fields.map(({ label }) => label)));
}

// A path by pointer on the picture, or a straight one by the numbers of its ends.
function track(edit, world) {
  if (edit.source?.kind !== "picture") return h("p.hint", {}, t("path_later"));
  const canvas = h("canvas.frame", { role: "img", "aria-label": t("path_frame") });
  const ends = [null, null, null, null];
  const fields = ["from_left", "from_top", "to_left", "to_top"].map((name, i) => {
    const typed = () => {
      if (!ends.includes(null)) show([0, 2].map((at) => [ends[at] / 100, ends[at + 1] / 100]));
    };
    const input = number(ends, i, 0, 100, "any", t("path_percent"), typed);
    return { input, label: h("label", {}, h("span", {}, t(`path_${name}`)), input) };
  });
  function show(path, all) {
    edit.path = path;
    if (all) tell();
    drawPath(canvas, path);
    actions.changeEdit();
  }
  function tell() {
    [...edit.path[0], ...edit.path.at(-1)].forEach((share, i) => {
      ends[i] = Number((100 * share).toFixed(1));
      fields[i].input.value = `${ends[i]}`;
    });
  }
  if (edit.path.length) tell();
  initPath(canvas, edit.source, world.size, edit.path, (drawn) => show(drawn, true));
  const seconds = number(edit, "seconds", 0.5, 60, "any", "");
  const labels = [...fields.map(({ label }) => label), h("label", {}, h("span", {}, t("seconds")), seconds)];
  return h("div.boxed", { "data-missing": "path_missing" }, h("p.hint", {}, t("path_hint")), canvas, h("div.numbers", {}, ...labels));
}

function chosen(edit, name, values) {
  const change = () => ((edit[name] = values[select.selectedIndex]), actions.changeEdit());
  const select = h("select", { onchange: change }, ...options(values, edit[name]));
  return h("label.stacked", {}, h("span", {}, t(name)), select);
}

function strength(edit) {
  const slider = h("input", { type: "range", min: "5", max: "100", step: "5", value: `${Math.round(100 * edit.strength)}` });
  const shown = h("output.time", {}, `${slider.value} %`);
  slider.addEventListener("input", () => {
    edit.strength = slider.valueAsNumber / 100;
    shown.textContent = `${slider.value} %`;
    actions.changeEdit();
  });
  return h("label.stacked", {}, h("span", {}, t("strength")), h("span.joined", {}, slider, shown));
}

function bar() {
  return h("div.actions", {}, h("button.primary", { type: "button", title: "Ctrl+Enter", onclick: actions.makeEdit }, t("make")));
}
