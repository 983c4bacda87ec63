// The video on the stage: playback, progress, downloads.

import { h, iconButton, icon, moves } from "./dom.js";
import { draw, fetchFrames, framesOf } from "./frames.js";
import { isOpen, isRunning, state, takeOf, worldOf } from "./state.js";
import { clock, duration, t } from "./strings.js";

let actions;
let parts = null;
let at = 0; // frame, with a fraction
let playing = moves();
let before = null; // time of the last drawing
let drawn = ""; // id and frame on the canvas

export function initStage(all) {
  actions = all;
}

export function showFromStart() {
  at = 0;
  playing = moves();
}

export function renderStage() {
  drawn = "";
  parts = {
    canvas: h("canvas", { role: "img", hidden: true }),
    empty: h("p.empty", {}, t("stage_empty")),
    caption: h("p.caption", { dir: "auto" }),
    play: iconButton("pause", t("pause"), toggle),
    slider: h("input", { type: "range", min: "0", max: "0", value: "0", "aria-label": t("position") }),
    clock: h("span.time"),
    progress: h("progress", { max: 1, "aria-label": t("stage") }),
    status: h("p.status"),
    warnings: h("ul.warnings"),
    stop: h("button", { type: "button", onclick: () => actions.stop(current()) }, t("stop")),
    goOn: h("button", { type: "button", onclick: () => actions.goOn(current()) }, t("go_on")),
    files: h("div.files"),
    reproduce: h("details", { hidden: true }, h("summary", {}, t("reproduce")), h("p", {}, t("reproduce_text")), h("pre", { tabindex: "0" }), h("pre", { tabindex: "0" })),
  };
  parts.slider.addEventListener("input", () => {
    at = parts.slider.valueAsNumber;
    setPlaying(false);
  });
  parts.controls = h("div.controls", {}, parts.play, parts.slider, parts.clock);
  document
    .getElementById("stage")
    .replaceChildren(
      h("div.screen", {}, parts.empty, parts.canvas),
      parts.caption,
      parts.controls,
      parts.progress,
      h("div.status-line", {}, parts.status, parts.stop, parts.goOn),
      parts.warnings,
      parts.files,
      parts.reproduce,
    );
  updateStage();
}

const current = () => takeOf(state.shown);

function toggle() {
  const take = current();
  if (!playing && take && !isOpen(take) && at >= framesOf(take).length - 1) at = 0;
  setPlaying(!playing);
}

function setPlaying(value) {
  playing = value;
  parts.play.replaceChildren(icon(playing ? "pause" : "play"));
  parts.play.setAttribute("aria-label", t(playing ? "pause" : "play"));
  parts.play.title = t(playing ? "pause" : "play");
}

export function statusOf(take) {
  if (take.status === "waiting") {
    const n = state.takes.filter((each) => isOpen(each) && (isRunning(each) || each.created < take.created)).length;
    return n ? t("status_waiting", { n }) : t("status_next");
  }
  if (take.status === "loading") return t("status_loading");
  if (take.status === "making") {
    const frames = t("status_making", take);
    return take.left === null ? frames : `${frames} · ${t("status_left", { time: duration(take.left) })}`;
  }
  if (take.status === "saving") return t("status_saving");
  if (take.status === "done") return t("status_done", { time: duration(take.seconds) });
  if (take.status === "failed") return t("status_failed", { error: take.error });
  return take.done ? t("status_stopped", take) : t("status_stopped_early");
}

export function updateStage() {
  const take = current();
  if (take) fetchFrames(take);
  parts.canvas.hidden = !framesOf(take).length;
  parts.empty.hidden = !parts.canvas.hidden;
  parts.controls.hidden = parts.caption.hidden = parts.canvas.hidden;
  parts.progress.hidden = !take || !isOpen(take);
  parts.progress.value = take?.total ? take.done / take.total : 0;
  parts.status.textContent = take ? statusOf(take) : "";
  parts.status.classList.toggle("error", take?.status === "failed");
  const warnings = take?.warnings ?? [];
  if (parts.warnings.childElementCount !== warnings.length || warnings.some((text, i) => parts.warnings.children[i].textContent !== text)) {
    parts.warnings.replaceChildren(...warnings.map((text) => h("li.hint", {}, text)));
  }
  const pressed = [parts.stop, parts.goOn].find((button) => button === document.activeElement);
  parts.stop.hidden = !take || !isOpen(take);
  parts.goOn.hidden = !take || !["stopped", "failed"].includes(take.status);
  if (pressed?.hidden) [parts.goOn, parts.stop, parts.play].find((button) => button.offsetParent)?.focus();
  parts.slider.max = Math.max(0, framesOf(take).length - 1);
  setPlaying(playing);
  const key = take ? `${take.id} ${take.files} ${state.draft.weights}` : "";
  if (parts.files.dataset.key !== key) {
    parts.files.dataset.key = key;
    parts.files.replaceChildren(...(take?.files.length ? downloads(take) : []));
    parts.reproduce.hidden = !take?.files.length;
    if (take?.files.length) commands(take);
  }
}

function downloads(take) {
  const link = (href, text) => h("a.button", { href, download: "" }, icon("download"), text);
  return [
    ...["mp4", "gif", "sheet", "story", "track"].filter((kind) => take.files.includes(kind)).map((kind) => link(`/api/takes/${take.id}/files/${kind}`, t(`download_${kind}`))),
    ...(take.opening ? [link(`/api/uploads/${take.opening}/file`, t(take.task ? "download_source" : "download_opening"))] : []),
    ...(take.own.first ? [link(`/api/uploads/${take.own.first}/file`, t("first_title"))] : []),
    Object.keys(worldOf(state.draft).tasks).length && take.files.includes("mp4") ? h("button", { type: "button", onclick: () => actions.editVideo(take) }, icon("pencil"), t("edit_video")) : "",
  ];
}

// How to generate the same bytes elsewhere.
async function commands(take) {
  const [shell, python] = parts.reproduce.querySelectorAll("pre");
  const { base, loras } = state.facts.weights.find((each) => each.name === take.weights) ?? { base: "", loras: [] };
  const opening = take.opening && (await actions.opening(take.opening));
  const name = `tokvid-${take.number}`;
  const files = { opening, file: opening && `${take.task ? "source" : "opening"}${opening.suffix}`, story: `${name}.yaml`, track: `${name}.json` };
  const first = take.own.first && (await actions.opening(take.own.first));
  if (take.id !== state.shown) return; // another video was shown meanwhile
  if (first) files.first = `first${first.suffix}`;
  const [words, code] = (take.task ? editCommands : storyCommands)(take, files);
  const added = loras.map(([file, scale]) => ` --lora ${quoted(scale === 1 ? file : `${file}:${scale}`)}`).join("");
  const loaded = loras.map(([file, scale]) => (scale === 1 ? JSON.stringify(file) : `(${JSON.stringify(file)}, ${scale})`));
  shell.textContent = `tokvid ${words} --weights ${base || "WEIGHTS"}${added} --out ${name}.mp4`;
  python.textContent = `import tokvid\n\nworld = tokvid.load("${base || "WEIGHTS"}"${loras.length ? `, loras=[${loaded.join(", ")}]` : ""})\nworld.${code}.save("${name}.mp4")`;
}

function storyCommands(take, { opening, file, story }) {
  const option = opening && (opening.kind === "picture" ? "image" : "video");
  const larger = take.larger > 1 ? take.larger : 0;
  const words = `${file ? ` --${option} ${file}` : ""}${larger ? ` --larger ${larger}` : ""}`;
  return [`story ${story}${words}`, `story("${story}"${file ? `, ${option}="${file}"` : ""}${larger ? `, larger=${larger}` : ""})`];
}

function editCommands(take, { file, first, track }) {
  const { fps, guidance, seed, segments } = take.story;
  const values = Object.entries({ ...take.own, ...(first ? { first } : {}), ...(take.own.track ? { track } : {}), fps, guidance, seed, ...(take.larger > 1 ? { larger: take.larger } : {}) });
  const options = values.map(([key, value]) => ` --${key} ${Array.isArray(value) ? value.join(" ") : value}`).join("");
  const settings = values.map(([key, value]) => `, ${key}=${JSON.stringify(value)}`).join("");
  const { prompt } = segments[0];
  if (take.method !== "edit") return [`${take.method} ${file} --prompt ${quoted(prompt)}${options}`, `${take.method}("${file}", prompt=${JSON.stringify(prompt)}${settings})`];
  return [`edit ${file} --task ${take.task} --prompt ${quoted(prompt)}${options}`, `edit("${file}", "${take.task}", ${JSON.stringify(prompt)}${settings})`];
}

// For a shell.
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// Draws the frame that is due; while frames are being generated, waits for them at the end.
export function play(now) {
  const take = current();
  const frames = framesOf(take);
  const elapsed = before === null ? 0 : Math.min(0.5, (now - before) / 1000);
  before = now;
  if (!frames.length) return;
  if (playing) {
    at += elapsed * take.fps;
    if (at >= frames.length) at = isOpen(take) ? frames.length - 1 : 0;
  }
  const index = Math.min(Math.floor(at), frames.length - 1);
  if (drawn === `${take.id} ${index}`) return;
  drawn = `${take.id} ${index}`;
  draw(parts.canvas, frames[index]);
  if (playing) parts.slider.value = index;
  parts.slider.setAttribute("aria-valuetext", clock(index / take.fps));
  parts.clock.textContent = `${clock(Math.floor((10 * index) / take.fps) / 10)} / ${clock(take.total / take.fps)}`;
  const scene = take.spans.findIndex(([, end]) => index < end);
  const prompt = take.story.segments[Math.max(0, scene)]?.prompt ?? "";
  if (parts.caption.textContent !== prompt) parts.caption.textContent = prompt;
  parts.canvas.setAttribute("aria-label", prompt);
}

export function togglePlay() {
  if (parts) toggle();
}
