/** The demo page: shows what the API returns, and sends what the user does. */

import { createApi, Problem, SessionEnded, Unreachable } from "./api.js";
import { challenge } from "./challenges.js";
import { Countdown, inWords } from "./countdown.js";
import { signIns } from "./sign_in.js";

const PAGE = 8; // entries of the history
const RECOVERY = 15_000; // milliseconds until an unreachable server is tried again
const DOUBLE_CLICK = 500; // milliseconds in which a second click counts as part of the first

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

let session = null; // of the signed-in user
let api = null; // the API client of that session
let quota = null; // as the server last returned it
let turns = 0; // a response counts only if no other call was started after its request
let isBusy = false;
let unfinishedKey = null; // of a click whose outcome is unknown: the next click sends it again
let cursor = null; // of the history's next page
let farewell = ""; // why the session ended, shown with the sign-in

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
  showStatus();
  warn(farewell);
  farewell = "";
  showNothing();
  $("user").textContent = next?.userId ?? "";
  $("who").hidden = $("account").hidden = !next;
  $("sign-in").hidden = Boolean(next);
  if (next) refresh();
  else if (wasSignedIn) $("sign-in-title").focus();
}

/** Fetch the current state, except during a spend, which shows its own result. */
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
    if (quota) showStatus("Used up: a challenge takes 1 unit.");
    return;
  }
  const isRetry = unfinishedKey !== null;
  unfinishedKey ??= crypto.randomUUID();
  const calm = wait(DOUBLE_CLICK);
  setBusy(true);
  showStatus();
  await guarded(async (turn) => {
    const answer = await api.consume(unfinishedKey);
    if (turn !== turns) return;
    unfinishedKey = null;
    warn("");
    if (answer.granted) {
      // A retry may get a replay, with the quota as the first attempt left it: fetch the current one.
      showQuota(isRetry ? await api.quota() : answer.quota);
      showStatus("Your challenge: ", strong(challenge()));
    } else {
      showExhausted(answer.refusal);
      showStatus("Used up: no unit was left.");
    }
    await showHistory(turn);
  });
  await calm;
  setBusy(false);
}

/** Run an action that calls the API, and show the message of its failure. */
async function guarded(action) {
  if (!api) return;
  turns += 1;
  const turn = turns;
  try {
    await action(turn);
    if (turn === turns) warn("");
  } catch (error) {
    if (turn !== turns) return;
    if (error instanceof SessionEnded) {
      farewell = "Your session has ended. Sign in again to continue.";
      session.signOut();
    } else if (error instanceof Unreachable) {
      showStatus();
      const isSafe = "Trying again is safe: it counts once.";
      warn(`The server cannot be reached. ${unfinishedKey ? isSafe : "What you see may be outdated."}`);
      setTimeout(() => turn === turns && refresh(), RECOVERY);
    } else if (error instanceof Problem) {
      showStatus();
      unfinishedKey = null;
      warn(error.message);
    } else {
      throw error;
    }
  }
}

function onRetry() {
  showStatus("The server does not answer. Trying again …");
}

/** Clear everything of the previous user, but keep its space, so that the layout does not move. */
function showNothing() {
  for (const name of ["plan", "left", "until"]) $(name).textContent = "\u00a0";
  for (const name of ["of", "countdown", "resets-at", "history"]) $(name).textContent = "";
  showMeter(0, 1);
  setAllowed(false);
  $("meter").hidden = false;
  $("older").hidden = true;
}

function showQuota(current) {
  quota = current;
  const { quota_remaining: left, quota_limit: limit, unlimited } = current;
  $("plan").textContent = `Plan ${current.plan}`;
  $("left").textContent = unlimited ? "Unlimited" : left.toLocaleString("en");
  $("of").textContent = unlimited ? "" : `of ${limit.toLocaleString("en")} left`;
  $("meter").hidden = unlimited;
  showMeter(left, Math.max(limit ?? 0, left, 1));
  setAllowed(unlimited || left > 0);
  countdown.start(current.seconds_to_reset);
}

/** A refusal is a state of the quota, not an error: it is used up until the reset. */
function showExhausted({ quota_remaining: left, quota_limit: limit, retry_after: seconds, resets_at: at }) {
  quota = { ...quota, quota_remaining: left, quota_limit: limit, resets_at: at };
  $("left").textContent = left.toLocaleString("en");
  $("of").textContent = `of ${limit.toLocaleString("en")} left`;
  showMeter(left, Math.max(limit, left, 1));
  setAllowed(false);
  countdown.start(seconds);
}

function showMeter(left, most) {
  // Low means at most a fifth, as in the admin; 0.01 covers the error of floating point.
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
  imported: "Moved in from the earlier app",
  reset: "New period",
  consumed: "Challenge generated",
  refused: "Refused: used up",
  refunded: "Refunded",
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

function showStatus(...parts) {
  $("status").replaceChildren(...parts);
}

function strong(text) {
  const element = document.createElement("strong");
  element.textContent = text;
  return element;
}

function warn(message) {
  if ($("alert").textContent !== message) $("alert").textContent = message;
}
