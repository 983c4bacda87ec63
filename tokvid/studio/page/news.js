// What the server says: asked again and again, and shown.

import { get } from "./api.js";
import { announce, toast } from "./dom.js";
import * as store from "./state.js";
import { has, t } from "./strings.js";

const { state } = store;
const OFTEN = 400; // milliseconds between questions while something is being generated
export const SELDOM = 3000;
const at = (id) => document.getElementById(id);
let timer;
let asked = 0; // questions so far
let since = 0; // the first one whose answer has all that the page knows
let arrived = () => {};

// What to do when there are news.
export function onNews(act) {
  arrived = act;
}

function scheduled() {
  clearTimeout(timer);
  timer = setTimeout(refresh, state.takes.some(store.isOpen) && !document.hidden ? OFTEN : SELDOM);
}

// Takes as the page itself has just changed them; answers to questions from before don't know.
export function know(takes) {
  state.takes = takes;
  since = asked + 1;
  scheduled();
}

export async function refresh() {
  const turn = ++asked;
  try {
    const answer = await get("/api/takes");
    at("offline").hidden = true;
    if (turn >= since) {
      since = turn;
      listed(answer);
    }
  } catch (error) {
    noNews(error);
  }
  scheduled();
}

// Says why none come, once while it stays so.
export function noNews(error) {
  const text = error.code === "offline" ? t("offline") : textOf(error);
  if (at("offline").textContent !== text) at("offline").textContent = text;
  at("offline").hidden = false;
}

function listed({ takes, more }) {
  const last = takes.at(-1)?.number ?? 0;
  const older = state.takes.filter((take) => more && take.number < last);
  if (!older.length) state.more = more;
  news([...takes, ...older.filter((take) => !takes.some((each) => each.id === take.id))]);
}

export function news(takes) {
  const ended = takes.filter((take) => take.until === null && ["done", "failed"].includes(take.status) && store.isOpen(store.takeOf(take.id)));
  if (ended.length) announce(ended.map((take) => t(take.status === "done" ? "made" : "not_made", { n: take.number, error: take.error })).join(" "));
  state.takes = takes;
  arrived();
}

export async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    problem(error);
  }
}

export function problem(error) {
  toast(textOf(error), { error: true });
}

function textOf(error) {
  const values = { message: error.message, mib: state.facts ? state.facts.limits.upload / 2 ** 20 : "" };
  return has(`error_${error.code}`) ? t(`error_${error.code}`, values) : error.message;
}
