/** The page: what the API says, in words; what the user does, to the API. */

import { createApi, Problem, SessionEnded, Unreachable } from "./api.js";
import { challenge } from "./challenges.js";
import { Countdown, inWords } from "./countdown.js";
import { signIns } from "./sign_in.js";

const PAGE = 8; // entries
const RECOVERY = 15_000; // milliseconds until a server that was away is asked again
const DOUBLE_CLICK = 500; // milliseconds in which a second click is meant as the first one

const $ = (id) => document.getElementById(id);
const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const countdown = new Countdown(showTimeLeft, () => refresh());
const clock = new Intl.DateTimeFormat("en-GB", {
  weekday: "short",
  day: "numeric",
  month: "short",
  hour: "2-digit",
  minute: "2-digit",
});

let session = null; // who is signed in
let api = null; // and the API as that user
let quota = null; // as the server last told it
let turns = 0; // an answer counts only if nothing was begun since it was asked for
let isBusy = false;
let unfinishedKey = null; // of a click whose outcome is unknown: the next one asks for the same
let cursor = null; // where the history goes on
let farewell = ""; // why the session is over

start();

function start() {
  $("generate").addEventListener("click", generate);
  $("generate").addEventListener("keydown", (event) => event.repeat && event.preventDefault());
  $("older").addEventListener("click", () => guarded((turn) => showHistory(turn, { older: true })));
  $("sign-out").addEventListener("click", () => session?.signOut());
  document.addEventListener("visibilitychange", () => document.hidden || refresh());
  const kind = document.body.dataset.signIn;
  const place = $(kind === "clerk" ? "clerk" : "sign-in");
  signIns[kind]?.(place, begin).catch(() => {
    $("sign-in").hidden = false;
    warn("The sign-in could not be loaded. Reload the page to try again.");
  });
}

/** Show the account of the session, or the sign-in if it is null. */
function begin(next) {
  const wasSignedIn = session !== null;
  session = next;
  api = next && createApi({ getToken: next.getToken, fetch: fetch.bind(window), wait, onRetry });
  [quota, unfinishedKey, cursor] = [null, null, null];
  turns += 1;
  countdown.stop();
  say();
  warn(farewell);
  farewell = "";
  showNothing();
  $("user").textContent = next?.userId ?? "";
  $("who").hidden = $("account").hidden = !next;
  $("sign-in").hidden = Boolean(next);
  if (next) refresh();
  else if (wasSignedIn) $("sign-in-title").focus();
}

/** Ask anew how things stand; a spend that is under way tells it by itself. */
function refresh() {
  if (isBusy) return undefined;
  return guarded(async (turn) => {
    const current = await api.quota();
    if (turn !== turns) return;
    showQuota(current);
    await showHistory(turn);
  });
}

async function generate() {
  if (isBusy) return;
  if ($("generate").getAttribute("aria-disabled") === "true") {
    if (quota) say("Used up: a challenge takes 1 unit.");
    return;
  }
  const isRetry = unfinishedKey !== null;
  unfinishedKey ??= crypto.randomUUID();
  const calm = wait(DOUBLE_CLICK);
  setBusy(true);
  say();
  await guarded(async (turn) => {
    const answer = await api.consume(unfinishedKey);
    if (turn !== turns) return;
    unfinishedKey = null;
    warn("");
    if (answer.granted) {
      // What comes of a retry may be how things stood when the first attempt was carried out.
      showQuota(isRetry ? await api.quota() : answer.quota);
      say("Your challenge: ", strong(challenge()));
    } else {
      showExhausted(answer.refusal);
      say("Used up: nothing was left to take.");
    }
    await showHistory(turn);
  });
  await calm;
  setBusy(false);
}

/** Run what asks the API, and tell of what went wrong: each failure in its own words, in one place. */
async function guarded(act) {
  if (!api) return;
  turns += 1;
  const turn = turns;
  try {
    await act(turn);
    if (turn === turns) warn("");
  } catch (error) {
    if (turn !== turns) return;
    if (error instanceof SessionEnded) {
      farewell = "Your session has ended. Sign in again to go on.";
      session.signOut();
    } else if (error instanceof Unreachable) {
      say();
      const isSafe = "Trying again is safe: it counts once.";
      warn(`The server cannot be reached. ${unfinishedKey ? isSafe : "What you see may be old."}`);
      setTimeout(() => turn === turns && refresh(), RECOVERY);
    } else if (error instanceof Problem) {
      say();
      unfinishedKey = null;
      warn(error.message);
    } else {
      throw error;
    }
  }
}

function onRetry() {
  say("The server does not answer. Trying again …");
}

/** Of the user before nothing is left to be seen; the room is kept, so that nothing moves. */
function showNothing() {
  for (const name of ["plan", "left", "until"]) $(name).textContent = "\u00a0";
  for (const name of ["of", "countdown", "resets-at", "history"]) $(name).textContent = "";
  showMeter(0, 1);
  setAllowed(false);
  $("meter").hidden = false;
  $("older").hidden = true;
}

function showQuota(told) {
  quota = told;
  const { quota_remaining: left, quota_limit: limit, unlimited } = told;
  $("plan").textContent = `Plan ${told.plan}`;
  $("left").textContent = unlimited ? "Unlimited" : left.toLocaleString("en");
  $("of").textContent = unlimited ? "" : `of ${limit.toLocaleString("en")} left`;
  $("meter").hidden = unlimited;
  showMeter(left, Math.max(limit ?? 0, left, 1));
  setAllowed(unlimited || left > 0);
  countdown.start(told.seconds_to_reset);
}

/** A refusal is a state of the quota, not an error: nothing is left, until it comes back. */
function showExhausted({ quota_remaining: left, quota_limit: limit, retry_after: seconds, resets_at: at }) {
  quota = { ...quota, quota_remaining: left, quota_limit: limit, resets_at: at };
  $("left").textContent = left.toLocaleString("en");
  $("of").textContent = `of ${limit.toLocaleString("en")} left`;
  showMeter(left, Math.max(limit, left, 1));
  setAllowed(false);
  countdown.start(seconds);
}

function showMeter(left, most) {
  // It is low from a fifth down, as in the admin; the bounds are floating point.
  Object.assign($("meter"), { max: most, high: most, optimum: most, low: most / 5 + 0.01, value: left });
}

function showTimeLeft(seconds) {
  const isEmpty = !quota.unlimited && quota.quota_remaining === 0;
  $("until").textContent = isEmpty ? "Used up. Full again in" : "A new period begins in";
  $("countdown").textContent = inWords(seconds);
  showInstant($("resets-at"), quota.resets_at);
}

async function showHistory(turn, { older = false } = {}) {
  const page = await api.history(older ? cursor : null, PAGE);
  if (turn !== turns) return;
  const items = page.entries.map(asItem);
  if (older) $("history").append(...items);
  else $("history").replaceChildren(...items);
  cursor = page.next_cursor;
  $("older").hidden = cursor === null;
}

const KINDS = {
  opened: "Quota opened",
  reset: "New period",
  consumed: "Challenge generated",
  refused: "Refused: used up",
  refunded: "Given back",
  adjusted: "Adjusted by staff",
  plan_changed: "Plan changed",
  deleted: "Closed",
};

function asItem(entry) {
  const item = $("entry").content.cloneNode(true);
  const sign = entry.delta > 0 ? "+" : entry.delta < 0 ? "−" : "";
  item.querySelector(".what").textContent = KINDS[entry.kind] ?? entry.kind;
  showInstant(item.querySelector("time"), entry.created_at);
  item.querySelector(".delta").textContent = sign + Math.abs(entry.delta).toLocaleString("en");
  item.querySelector(".balance").textContent = `${entry.balance_after.toLocaleString("en")} left`;
  return item;
}

function showInstant(element, instant) {
  element.dateTime = instant;
  element.textContent = clock.format(new Date(instant));
}

function setBusy(busy) {
  isBusy = busy;
  $("generate").setAttribute("aria-busy", String(busy));
}

function setAllowed(allowed) {
  $("generate").setAttribute("aria-disabled", String(!allowed));
}

function say(...words) {
  $("status").replaceChildren(...words);
}

function strong(text) {
  const element = document.createElement("strong");
  element.textContent = text;
  return element;
}

function warn(words) {
  if ($("alert").textContent !== words) $("alert").textContent = words;
}
