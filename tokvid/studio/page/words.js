// The words that the weights know, and a note below a prompt that names those that they hardly know.

import { post } from "./api.js";
import { h } from "./dom.js";
import { state } from "./state.js";
import { t } from "./strings.js";

const PAUSE = 500; // milliseconds without typing
const MOST = 8; // words that a note names
const KEPT = 500; // answers
const answers = new Map(); // words by weights and prompt, so that cards that are rendered anew ask nothing

let listed = false; // whether the list is open, also when it is rendered anew

// A list of the commonest ones, shown when it is opened.
export function knownWords({ words }) {
  if (!words.length) return "";
  const turn = () => (listed = !list.open); // "toggle" comes later, maybe after the list has been rendered anew
  const summary = h("summary", { onclick: turn }, t("known_words"));
  const list = h("details.settings.known", { open: listed }, summary, h("p.hint", {}, words.join(" · ")));
  return list;
}

// A note for a prompt's field, which changes with it.
export function wordsNote(field, id) {
  const note = h("p.hint.words", { id, "aria-live": "polite" });
  let timer;
  field.setAttribute("aria-describedby", id);
  field.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(look, PAUSE);
  });
  field.addEventListener("change", look);
  look();
  return note;

  function look() {
    clearTimeout(timer);
    const [weights, prompt] = [state.draft.weights, field.value];
    const key = `${weights} ${prompt}`;
    if (!prompt.trim()) show([]);
    else if (answers.has(key)) show(answers.get(key));
    else ask(key, weights, prompt);
  }

  async function ask(key, weights, prompt) {
    try {
      const { words } = await post("/api/words", { weights, prompt });
      if (answers.size >= KEPT) answers.clear();
      answers.set(key, words);
      if (key === `${state.draft.weights} ${field.value}`) show(words);
    } catch {
      // no note; the page says elsewhere that the server doesn't answer
    }
  }

  function show(words) {
    const text = words.length ? t("hardly_known", { words: [...words.slice(0, MOST), ...(words.length > MOST ? ["…"] : [])].join(" · ") }) : "";
    if (note.textContent !== text) note.textContent = text; // which is read out
  }
}
