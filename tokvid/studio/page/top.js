// The top of the page: weights, language and theme.

import { closeToasts, h, icon } from "./dom.js";
import * as store from "./state.js";
import { chooseLanguage, languageNow, t } from "./strings.js";

const { state } = store;
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

// Shows the language that was chosen, else the browser's.
export function startLanguage() {
  chooseLanguage(saved("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en"));
}

export function renderTop() {
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

export function initTop(actions) {
  at("language").addEventListener("click", () => {
    chooseLanguage(languageNow() === "zh" ? "en" : "zh");
    keep("language", languageNow());
    closeToasts();
    actions.renderAll();
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
    actions.takeOver(store.withWeights(state.draft, world));
    at("weights").focus();
  });
}
