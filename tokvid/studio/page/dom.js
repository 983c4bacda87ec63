// Elements by function calls, icons, messages.

import { t } from "./strings.js";

// h("button.primary", {onclick, "aria-label": …}, "text", child): an element.
export function h(selector, attributes = {}, ...children) {
  const [tag, ...classes] = selector.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && typeof value !== "string") element[name] = value;
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const PATHS = {
  up: "M12 19V5M5 12l7-7 7 7",
  down: "M12 5v14M5 12l7 7 7-7",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  bin: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v5M14 11v5",
  plus: "M12 5v14M5 12h14",
  play: "M7 4.5v15l12-7.5z",
  pause: "M8 5v14M16 5v14",
  stop: "M6 6h12v12H6z",
  again: "M20 11a8 8 0 1 0-2.3 6.3M20 5v6h-6",
  branch: "M6 4v16M6 12c8 0 10-2 12-7M6 12c8 0 10 2 12 7",
  dice: "M5 5h14v14H5zM9 9h.01M15 15h.01M12 12h.01M9 15h.01M15 9h.01",
  download: "M12 4v11M6 10l6 6 6-6M4 20h16",
  grip: "M9 6h.01M15 6h.01M9 12h.01M15 12h.01M9 18h.01M15 18h.01",
  pencil: "M4 20l1-4L16 5l3 3L8 19z",
  close: "M6 6l12 12M18 6L6 18",
  picture: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M9 9h.01",
  check: "M5 12l5 5 9-10",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.5 1.5M17.5 17.5L19 19M5 19l1.5-1.5M17.5 6.5L19 5",
  moon: "M20 14A8 8 0 1 1 10 4a7 7 0 0 0 10 10z",
  system: "M3 5h18v11H3zM9 20h6M12 16v4",
};

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("icon-shape");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

export function iconButton(name, label, onclick, extra = {}) {
  return h("button.icon", { type: "button", "aria-label": label, title: label, onclick, ...extra }, icon(name));
}

// Renders a place anew. The element of it that has the focus keeps it, by its name and its turn among those of that name; where it is
// gone, the one that `otherwise` selects gets it.
export function keepFocus(place, render, otherwise = "") {
  const focused = document.activeElement;
  if (!place.contains(focused)) return render();
  const nameOf = (each) => each.id || each.getAttribute("aria-label") || (each.labels?.[0]?.querySelector("span") ?? each).textContent;
  const all = (name) => [...place.querySelectorAll(focused.tagName)].filter((each) => nameOf(each) === name);
  const name = nameOf(focused);
  const turn = all(name).indexOf(focused);
  const { selectionStart, selectionEnd } = focused;
  render();
  const next = all(name)[turn] ?? (otherwise && place.querySelector(otherwise));
  next?.focus({ preventScroll: true });
  if (typeof selectionStart === "number") next?.setSelectionRange?.(selectionStart, selectionEnd);
}

// What a screen reader says next.
export function announce(text) {
  document.getElementById("live").replaceChildren(text); // a new text, even if it says the same
}

// A message for a few seconds; `action` is [label, function].
export function toast(text, { action, error } = {}) {
  let before = null; // what had the focus before the message
  const close = () => {
    const back = box.contains(document.activeElement);
    box.remove();
    if (back) (before?.isConnected ? before : document.getElementById("story")).focus();
  };
  const box = h(
    error ? "div.toast.error" : "div.toast",
    { role: error ? "alert" : "status" },
    h("span", {}, text),
    action && h("button.link", { type: "button", onclick: () => (close(), action[1]()) }, action[0]),
    h("button.icon", { type: "button", "aria-label": t("close"), onclick: close }, icon("close")),
  );
  const toasts = document.getElementById("toasts");
  for (const other of error ? toasts.querySelectorAll(".error") : []) {
    if (other.querySelector("span").textContent === text) other.remove(); // once is enough
  }
  box.addEventListener("focusin", ({ relatedTarget }) => {
    if (!box.contains(relatedTarget)) before = relatedTarget;
  });
  toasts.append(box);
  const end = () => (box.matches(":hover, :focus-within") ? setTimeout(end, 1000) : close()); // who is at it is not hurried
  setTimeout(end, error ? 15000 : 8000);
}

// Those in which there is nothing to choose.
export function closeToasts() {
  for (const box of document.querySelectorAll("#toasts .toast:not(:has(.link))")) box.remove();
}

// What went wrong with the draft before it was changed.
export function closeErrors() {
  for (const box of document.querySelectorAll("#toasts .error")) box.remove();
}

// Whether things may move by themselves: who has asked the system for less motion starts videos.
export const moves = () => !matchMedia("(prefers-reduced-motion: reduce)").matches;

export function newSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000;
}
