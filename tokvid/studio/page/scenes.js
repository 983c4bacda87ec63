// The cards of scenes. They are rendered anew where scenes come, go or move, and else updated in place.

import { h, icon, iconButton, newSeed, toast } from "./dom.js";
import { drawStrip, framesOf } from "./frames.js";
import { alike, duplicate, isOpen, isRunning, newScene, state, takeOfDraft, worldOf } from "./state.js";
import { clock, t } from "./strings.js";
import { renderVariants, updateVariants } from "./variants.js";
import { wordsNote } from "./words.js";

const STRIP = 6; // pictures on a card
const RANGES = { seconds: [0.1, 60], guidance: [0, 100], seed: [0, 2 ** 32 - 1] };
let actions;
let cards = []; // {scene, parts}
let dragged = null; // the index of the card that is being dragged

export function initScenes(all) {
  actions = all;
}

export function renderScenes(focus = null) {
  const scenes = state.draft.scenes;
  cards = scenes.map((scene, index) => card(scene, index));
  const last = h("li", {}, h("button.add", { type: "button", onclick: () => add(scenes.length, newScene(worldOf(state.draft), scenes.at(-1))) }, t("add_scene")));
  document.getElementById("scenes").replaceChildren(...cards.map(({ root }) => h("li", {}, root)), last);
  updateScenes();
  if (focus) focusOn(focus);
}

// Shows or closes variants; the cards stay, and with them what is being typed.
export function renderBranch() {
  cards.forEach((parts, index) => renderVariants(parts.variants, index, actions));
}

// Focuses a part of the card at an index: [index, name of the part].
export function focusOn([index, name]) {
  const parts = cards[Math.min(index, cards.length - 1)];
  parts?.[parts[name]?.disabled ? "prompt" : name]?.focus();
}

function insert(index, scene) {
  state.draft.scenes.splice(index, 0, scene);
  actions.change([index, "prompt"]);
}

// One more scene, as far as a story may have more.
function add(index, scene) {
  const most = state.facts.limits.scenes;
  if (state.draft.scenes.length < most) insert(index, scene);
  else toast(t("scenes_most", { n: most }), { error: true });
}

function move(index, by, name) {
  const scenes = state.draft.scenes;
  if (index + by < 0 || index + by >= scenes.length) return;
  scenes.splice(index + by, 0, ...scenes.splice(index, 1));
  actions.change([index + by, name]);
}

// A card is dragged by its grip, and dropped before or behind another one.
function makeDraggable({ grip, root }, index) {
  const isBehind = (event) => event.clientY > root.getBoundingClientRect().top + root.offsetHeight / 2;
  const unmark = () => delete root.dataset.drop;
  grip.addEventListener("dragstart", (event) => {
    dragged = index;
    event.dataTransfer.effectAllowed = "move";
    event.dataTransfer.setData("text/plain", "");
    event.dataTransfer.setDragImage(root, 16, 16);
  });
  grip.addEventListener("dragend", () => (dragged = null));
  root.addEventListener("dragover", (event) => {
    if (dragged === null) return;
    event.preventDefault();
    root.dataset.drop = isBehind(event) ? "behind" : "before";
  });
  root.addEventListener("dragleave", unmark);
  root.addEventListener("drop", (event) => {
    unmark();
    if (dragged === null) return;
    event.preventDefault();
    const place = index + (isBehind(event) ? 1 : 0);
    const by = place - dragged - (place > dragged ? 1 : 0);
    if (by) move(dragged, by, "prompt");
  });
}

function remove(index) {
  const [scene] = state.draft.scenes.splice(index, 1);
  actions.change([Math.max(0, index - 1), "prompt"]);
  const undo = () => insert(Math.min(index, state.draft.scenes.length), scene);
  toast(t("deleted_scene", { n: index + 1 }), { action: [t("undo"), undo] });
}

function number(scene, name, step, hint) {
  const [low, high] = RANGES[name];
  const input = h("input", { type: "number", min: `${low}`, max: `${high}`, step, value: `${scene[name]}`, title: hint, inputmode: "decimal", required: true });
  input.addEventListener("input", () => {
    if (!input.checkValidity()) return;
    scene[name] = input.valueAsNumber;
    actions.change();
  });
  return input;
}

function card(scene, index) {
  const n = index + 1;
  const title = `title-${scene.key}`;
  const parts = { scene };
  parts.prompt = h("textarea", { rows: "2", dir: "auto", maxlength: "2000", "aria-label": t("prompt", { n }), placeholder: hint(index), value: scene.prompt });
  parts.prompt.addEventListener("input", () => {
    scene.prompt = parts.prompt.value;
    actions.change();
  });
  parts.seconds = number(scene, "seconds", "any", "");
  parts.guidance = number(scene, "guidance", "any", t("guidance_hint"));
  parts.seed = number(scene, "seed", "1", "");
  parts.grip = h("span.grip", { draggable: "true", title: t("drag", { n }), "aria-hidden": "true" }, icon("grip"));
  parts.up = iconButton("up", t("move_up", { n }), () => move(index, -1, "up"), { disabled: index === 0 });
  parts.down = iconButton("down", t("move_down", { n }), () => move(index, 1, "down"), { disabled: index === state.draft.scenes.length - 1 });
  const dice = iconButton("dice", t("new_seed"), () => {
    parts.seed.value = scene.seed = newSeed();
    actions.change();
  });
  parts.time = h("span.time");
  parts.badge = h("span.badge");
  parts.strip = h("canvas.strip", { "aria-hidden": "true", hidden: true });
  parts.again = h("button", { type: "button", title: t("again_hint"), onclick: () => actions.again(index) }, t("again"));
  parts.four = h("button", { type: "button", title: t("variants_hint"), onclick: () => actions.branch(index) }, t("variants"));
  parts.variants = h("div");
  parts.root = h(
    "div.scene.panel",
    { "aria-labelledby": title, role: "group" },
    h(
      "div.scene-head",
      {},
      parts.grip,
      h("h2", { id: title }, t("scene", { n })),
      parts.time,
      parts.badge,
      h(
        "div.scene-buttons",
        {},
        parts.up,
        parts.down,
        iconButton("copy", t("duplicate", { n }), () => add(index + 1, duplicate(scene))),
        iconButton("bin", t("delete_scene", { n }), () => remove(index), { disabled: state.draft.scenes.length === 1 }),
      ),
    ),
    parts.prompt,
    wordsNote(parts.prompt, `words-${scene.key}`),
    h(
      "div.numbers",
      {},
      h("label", {}, h("span", {}, t("seconds")), parts.seconds),
      h("label", {}, h("span", {}, t("guidance")), parts.guidance),
      h("label", {}, h("span", {}, t("seed")), h("span.joined", {}, parts.seed, dice)),
      h("div.scene-actions", {}, parts.again, parts.four),
    ),
    parts.strip,
    parts.variants,
  );
  parts.root.addEventListener("keydown", (event) => {
    if (!event.altKey || !["ArrowUp", "ArrowDown"].includes(event.key)) return;
    event.preventDefault();
    move(index, event.key === "ArrowUp" ? -1 : 1, "prompt");
  });
  makeDraggable(parts, index);
  renderVariants(parts.variants, index, actions);
  return parts;
}

function hint(index) {
  const { example } = worldOf(state.draft);
  return example.length ? t("prompt_hint", { example: example[index % example.length].prompt }) : "";
}

function status(index, take, count) {
  if (index > count) return take && take.story.segments.length > index ? "follows" : "new";
  if (index === count) return take && take.story.segments.length > index ? "changed" : "new";
  const [first, end] = take.spans[index] ?? [Infinity, Infinity];
  if (take.status === "done" || take.done >= end) return "done";
  if (isRunning(take) && take.done >= first) return "making";
  return isOpen(take) ? "waiting" : "new";
}

export function updateScenes() {
  const take = takeOfDraft();
  const count = alike(state.draft, take);
  let start = 0;
  cards.forEach((parts, index) => {
    const { scene } = parts;
    const now = status(index, take, count);
    parts.time.textContent = t("scene_time", { from: clock(start), to: clock((start += scene.seconds)) });
    parts.badge.textContent = t(`state_${now}`);
    parts.badge.dataset.state = now;
    parts.again.hidden = parts.four.hidden = !scene.prompt.trim();
    const frames = framesOf(take);
    const span = index < count && take.spans[index];
    parts.strip.hidden = !span || frames.length <= span[0] || span[1] <= span[0];
    if (!parts.strip.hidden) drawStrip(parts.strip, frames, span, STRIP, take.size);
  });
  updateVariants();
}
