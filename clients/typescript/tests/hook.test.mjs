import assert from "node:assert/strict";
import { after, afterEach, beforeEach, mock, test } from "node:test";
import { Window } from "happy-dom";

const window = new Window({ url: "https://app.example.com/" });
Object.assign(globalThis, { window, document: window.document, IS_REACT_ACT_ENVIRONMENT: true });
globalThis.navigator ??= window.navigator; // node has its own from version 21 on
const { act, createElement, StrictMode } = await import("react");
const { createRoot } = await import("react-dom/client");
const { QuotaExhausted, QuotaUnreachable } = await import("quotasite-client");
const { QuotaProvider, useQuota } = await import("quotasite-client/react");
const { SITE, newUser, signedIn } = await import("./site.mjs");

const quotaOf = (quota_remaining, more = {}) => ({
  user_id: "user_1",
  plan: "free",
  quota_limit: 20,
  quota_remaining,
  resets_at: "2026-09-25T08:00:00Z",
  seconds_to_reset: 3_600,
  ...more,
});
const consumption = (seq, quota_remaining) => ({
  ...{ id: `c-${seq}`, seq, cost: 1, refunded: 0 },
  quota: quotaOf(quota_remaining),
});
const exhausted = {
  status: 429,
  code: "quota_exhausted",
  detail: "Quota exhausted: 0 of 20 left, 20 more at 2026-09-25T08:00:00Z.",
  cost: 1,
  quota_limit: 20,
  quota_remaining: 0,
  resets_at: "2026-09-25T08:00:00Z",
  retry_after: 3_600,
};

after(() => window.happyDOM.close());

let asked; // the requests, oldest first, which the tests answer
let reads; // immediate answers to GET requests, the last one repeatedly; if empty, the tests answer them
let reported; // errors from React and node
let roots;
const realFetch = globalThis.fetch;

beforeEach(() => {
  [asked, reads, reported, roots] = [[], [], [], []];
  seen("visible");
  mock.method(console, "error", (...parts) => {
    if (!/ExperimentalWarning/.test(parts[0])) reported.push(parts.join(" ")); // node warns about mocked timers
  });
  globalThis.fetch = (url, { method, headers }) =>
    new Promise((resolve, reject) => {
      const answer = (body, status = 200, more = {}) => {
        const type = status < 400 ? "application/json" : "application/problem+json";
        resolve(new Response(JSON.stringify(body), { status, headers: { "Content-Type": type, ...more } }));
      };
      const key = headers["Idempotency-Key"];
      const request = { method, url, key, token: headers.Authorization, answer, reject };
      asked.push(request);
      if (method === "GET" && reads.length) answer(reads.length > 1 ? reads.shift() : reads[0]);
    });
});

afterEach(async () => {
  for (const root of roots) await act(() => root.unmount());
  mock.timers.reset();
  mock.restoreAll();
  globalThis.fetch = realFetch;
  assert.deepEqual(reported, []);
});

/** Render the hook; `now` of the result is what the hook returned last. */
async function use(options = {}, strict = false) {
  const shown = { renders: 0, unmount: () => act(() => root.unmount()) };
  const root = createRoot(document.createElement("div"));
  roots.push(root);
  const App = (props) => {
    shown.now = useQuota({ baseUrl: "https://q.example.com", getToken: async () => "t", ...props });
    shown.renders += 1;
    return null;
  };
  shown.render = (props) =>
    act(async () => root.render(createElement(strict ? StrictMode : "div", null, createElement(App, props))));
  await shown.render(options);
  await settled();
  return shown;
}

/** Wait until all pending promises and effects have run. */
const settled = () => act(() => new Promise((resolve) => setImmediate(() => setImmediate(resolve))));
const gets = () => asked.filter(({ method }) => method === "GET");
const posts = () => asked.filter(({ method }) => method === "POST");

async function answer(request, ...what) {
  request.answer(...what);
  await settled();
}

async function start(shown, ...order) {
  let result;
  await act(async () => {
    result = shown.now.consume(...order);
  });
  await settled();
  return { result };
}

function seen(state) {
  Object.defineProperty(document, "visibilityState", { value: state, configurable: true });
}

async function show(state) {
  seen(state);
  await act(() => document.dispatchEvent(new window.Event("visibilitychange")));
  await settled();
}

async function pass(seconds) {
  await act(() => mock.timers.tick(seconds * 1_000));
  await settled();
}

test("it is loading until the quota is there", async () => {
  const shown = await use();
  assert.deepEqual([shown.now.isLoading, shown.now.quota, shown.now.error], [true, null, null]);
  await answer(asked[0], quotaOf(12));
  assert.deepEqual([shown.now.isLoading, shown.now.quota.quota_remaining], [false, 12]);
});

test("a read that is refused ends the loading, and a refetch begins it again", async () => {
  const shown = await use();
  await answer(asked[0], { status: 410, code: "user_deleted", detail: "This user was deleted." }, 410);
  assert.deepEqual([shown.now.isLoading, shown.now.error.code], [false, "user_deleted"]);
  reads = [quotaOf(12)];
  await act(() => shown.now.refetch());
  assert.deepEqual([shown.now.error, shown.now.quota.quota_remaining], [null, 12]);
});

test("a spend shows what its answer says, without another read", async () => {
  reads = [quotaOf(12)];
  const shown = await use();
  const { result } = await start(shown, { cost: 1 });
  await answer(posts()[0], consumption(5, 11), 201);
  assert.equal((await result).id, "c-5");
  assert.deepEqual([shown.now.quota.quota_remaining, gets().length], [11, 1]);
});

test("a second click while a spend waits is ignored, and is no error", async () => {
  reads = [quotaOf(12)];
  const shown = await use();
  const first = await start(shown);
  assert.equal(shown.now.isSpending, true);
  const second = await start(shown);
  assert.equal(await second.result, null);
  assert.deepEqual([posts().length, shown.now.error, shown.now.isSpending], [1, null, true]);
  await answer(posts()[0], consumption(5, 11), 201);
  assert.equal((await first.result).id, "c-5");
  assert.deepEqual([shown.now.isSpending, shown.now.quota.quota_remaining], [false, 11]);
});

test("two clicks before the next render are one spend", async () => {
  reads = [quotaOf(12)];
  const shown = await use();
  const { consume } = shown.now;
  await act(async () => void [consume(), consume()]);
  assert.equal(posts().length, 1);
});

test("after a spend that was refused the next click spends", async () => {
  reads = [quotaOf(12)];
  const shown = await use();
  await start(shown);
  await answer(posts()[0], exhausted, 429);
  assert.equal(shown.now.isSpending, false);
  await start(shown);
  assert.deepEqual([posts().length, shown.now.isSpending], [2, true]);
});

test("a read that a spend overtook is made again", async () => {
  const shown = await use();
  await start(shown);
  await answer(posts()[0], consumption(2, 19), 201);
  await answer(gets()[0], quotaOf(20));
  assert.equal(shown.now.quota.quota_remaining, 19);
  await answer(gets()[1], quotaOf(18));
  assert.equal(shown.now.quota.quota_remaining, 18);
});

test("a read waits for the spend that is under way", async () => {
  reads = [quotaOf(12)];
  const shown = await use();
  await start(shown);
  await show("visible");
  assert.equal(gets().length, 1);
  await answer(posts()[0], consumption(5, 11), 201);
  assert.equal(gets().length, 2);
});

test("an exhausted quota is told, and read as it stands", async () => {
  reads = [quotaOf(1), quotaOf(0)];
  const shown = await use();
  const { result } = await start(shown);
  await answer(posts()[0], exhausted, 429);
  assert.equal(await result, null);
  assert.ok(shown.now.error instanceof QuotaExhausted);
  assert.deepEqual([shown.now.error.resets_at, shown.now.quota.quota_remaining], ["2026-09-25T08:00:00Z", 0]);
});

test("the next spend begins without the error of the last", async () => {
  reads = [quotaOf(0)];
  const shown = await use();
  await start(shown);
  await answer(posts()[0], exhausted, 429);
  await start(shown);
  assert.equal(shown.now.error, null);
});

test("a replay is followed by a read, for its quota is old", async () => {
  reads = [quotaOf(5)];
  const shown = await use();
  const { result } = await start(shown, {}, { key: "k-1" });
  await answer(posts()[0], consumption(2, 19), 201, { "Idempotent-Replayed": "true" });
  assert.equal((await result).replayed, true);
  assert.deepEqual([shown.now.quota.quota_remaining, gets().length], [5, 2]);
});

test("it reads again when the period ends", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  reads = [quotaOf(0, { seconds_to_reset: 60 }), quotaOf(20)];
  const shown = await use();
  await pass(59);
  assert.deepEqual([gets().length, shown.now.quota.quota_remaining], [1, 0]);
  await pass(1);
  assert.deepEqual([gets().length, shown.now.quota.quota_remaining], [2, 20]);
});

test("the end of a period is that of the answer that is shown", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  reads = [quotaOf(3, { seconds_to_reset: 60 })];
  const shown = await use();
  await start(shown);
  await answer(posts()[0], consumption(5, 2), 201); // 3600 seconds
  await pass(3_599);
  assert.equal(gets().length, 1);
});

test("a period of 40 days ends after 40 days", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  reads = [quotaOf(3, { seconds_to_reset: 40 * 86_400 })];
  await use();
  for (let days = 0; days < 39; days += 1) await pass(86_400);
  assert.equal(gets().length, 1);
  await pass(2 * 86_400);
  assert.equal(gets().length, 2);
});

test("a period of 40 days is no timer that goes off at once", async () => {
  reads = [quotaOf(3, { seconds_to_reset: 40 * 86_400 })];
  await use();
  await act(() => new Promise((resolve) => setTimeout(resolve, 20))); // real timers, which have the limit
  assert.equal(gets().length, 1);
});

test("a period without an end that comes does not read without a pause", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  reads = [quotaOf(3, { seconds_to_reset: 0 })];
  await use();
  await pass(0.9);
  assert.equal(gets().length, 1);
});

test("a page that is hidden reads when it is shown again, and not before", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  reads = [quotaOf(0, { seconds_to_reset: 60 }), quotaOf(20)];
  const shown = await use();
  await show("hidden");
  await pass(120);
  assert.equal(gets().length, 1);
  await show("visible");
  assert.deepEqual([gets().length, shown.now.quota.quota_remaining], [2, 20]);
});

test("StrictMode's second mount reads once and shows it", async () => {
  const shown = await use({}, true);
  assert.equal(gets().length, 1);
  await answer(asked[0], quotaOf(12));
  assert.equal(shown.now.quota.quota_remaining, 12);
  reads = [quotaOf(11)];
  await show("visible");
  assert.deepEqual([gets().length, shown.now.quota.quota_remaining], [2, 11]);
});

test("the end of a period is nothing to a page that left before", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  reads = [quotaOf(12, { seconds_to_reset: 60 })];
  const shown = await use();
  await shown.unmount();
  await pass(120);
  assert.equal(gets().length, 1);
});

test("after the unmount nothing is read, and an answer that is late does no harm", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  reads = [quotaOf(12, { seconds_to_reset: 60 })];
  const shown = await use();
  const { result } = await start(shown);
  const { renders } = shown;
  await shown.unmount();
  await answer(posts()[0], consumption(5, 11), 201);
  assert.equal((await result).id, "c-5");
  await pass(4_000);
  await show("visible");
  assert.deepEqual([gets().length, shown.renders], [1, renders]);
});

test("a new getToken with each render is used, and causes no read", async () => {
  reads = [quotaOf(12)];
  const shown = await use({ getToken: async () => "old" });
  await shown.render({ getToken: async () => "new" });
  assert.equal(gets().length, 1);
  await start(shown);
  assert.equal(posts()[0].token, "Bearer new");
});

test("another user begins with nothing of the last one's", async () => {
  reads = [quotaOf(12)];
  const shown = await use({ userId: "user_1" });
  reads = [];
  await shown.render({ userId: "user_2" });
  await settled();
  assert.deepEqual([shown.now.quota, shown.now.isLoading, gets().length], [null, true, 2]);
});

const away = async (request) => {
  request.reject(new TypeError("fetch failed"));
  await settled();
};

/** Let the client's three attempts of one read fail. */
async function lose() {
  await away(gets().at(-1));
  await pass(2);
  await away(gets().at(-1));
  await pass(2);
  await away(gets().at(-1));
}

const unavailable = (status) => ({ status, code: "database_unavailable", detail: "Try again." });

test("a network that was away at the start is no error for ever", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const shown = await use();
  await lose();
  assert.ok(shown.now.error instanceof QuotaUnreachable);
  assert.equal(gets().length, 3);
  await pass(0.5);
  await answer(gets()[3], quotaOf(12));
  assert.deepEqual([shown.now.error, shown.now.quota.quota_remaining], [null, 12]);
});

test("a service that stays away is asked at growing pauses, at least once a minute", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  await use();
  await answer(gets().at(-1), { status: 429, code: "quota_exhausted", detail: "Too many." }, 429);
  const times = [];
  for (let half = 0; times.length < 10 && half < 1_000; half += 1) {
    const before = gets().length;
    await pass(0.5);
    if (gets().length === before) continue;
    times.push(half / 2);
    await answer(gets().at(-1), { status: 429, code: "quota_exhausted", detail: "Too many." }, 429);
  }
  const pauses = times.slice(1).map((time, index) => time - times[index]);
  assert.ok(pauses.at(-1) >= 29 && pauses.at(-1) <= 61, `${pauses}`);
  assert.ok(pauses[0] <= 2, `${pauses}`);
});

test("the wait that a refusal asks for is kept, however long", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  await use();
  const day = 86_400;
  await answer(gets()[0], unavailable(503), 503, { "Retry-After": String(30 * day) });
  for (let days = 0; days < 29; days += 1) await pass(day);
  assert.equal(gets().length, 1);
  await pass(2 * day);
  assert.equal(gets().length, 2);
});

test("a refusal that cannot change is not asked for again", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  for (const [status, code] of [[401, "token_azp"], [403, "user_only"], [410, "user_deleted"]]) {
    asked = [];
    const shown = await use();
    reads = [];
    for (const request of gets()) await answer(request, { status, code, detail: "No." }, status);
    const before = gets().length;
    await pass(3_600);
    assert.deepEqual([gets().length, shown.now.error.code], [before, code]);
  }
});

test("a token that is null at first, while Clerk loads, is asked for again, without a request", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  let token = null;
  const shown = await use({ getToken: async () => token });
  assert.equal(shown.now.error.message, "You are signed out: sign in to use your quota.");
  assert.equal(gets().length, 0);
  token = "t";
  await pass(0.5);
  assert.equal(gets()[0].token, "Bearer t");
  await answer(gets()[0], quotaOf(12));
  assert.deepEqual([shown.now.error, shown.now.quota.quota_remaining], [null, 12]);
});

test("the network's return is a reason to read at once", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const shown = await use();
  await lose();
  const before = gets().length;
  await act(() => window.dispatchEvent(new window.Event("online")));
  assert.equal(gets().length, before + 1);
  await answer(gets().at(-1), quotaOf(12));
  assert.equal(shown.now.quota.quota_remaining, 12);
});

test("a failed read is not repeated while the page is hidden, nor after the unmount", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const shown = await use();
  await lose();
  const before = gets().length;
  await show("hidden");
  await pass(3_600);
  await act(() => window.dispatchEvent(new window.Event("online")));
  assert.equal(gets().length, before);
  await show("visible");
  assert.equal(gets().length, before + 1);
  await lose();
  const last = gets().length;
  await shown.unmount();
  await pass(3_600);
  await act(() => window.dispatchEvent(new window.Event("online")));
  assert.equal(gets().length, last);
});

test("a runtime without AbortSignal.timeout, AbortSignal.any and crypto, such as React Native, is enough", async () => {
  const missing = [[AbortSignal, "timeout"], [AbortSignal, "any"], [globalThis, "crypto"]];
  const found = missing.map(([owner, name]) => [owner, name, Object.getOwnPropertyDescriptor(owner, name)]);
  for (const [owner, name] of missing) delete owner[name];
  try {
    const shown = await use();
    await answer(gets()[0], quotaOf(12));
    const { result } = await start(shown);
    await answer(posts()[0], consumption(5, 11), 201);
    assert.equal((await result).id, "c-5");
    assert.match(posts()[0].key, /^[0-9a-f]{32}$/);
  } finally {
    for (const [owner, name, property] of found) Object.defineProperty(owner, name, property);
  }
});

test("the key of a spend whose outcome is unknown stays when the quota is read again", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  reads = [quotaOf(12), quotaOf(11)];
  const shown = await use();
  await start(shown);
  for (const number of [0, 1, 2]) {
    await away(posts()[number]);
    await pass(5);
  }
  assert.deepEqual([shown.now.error.outcome_unknown, shown.now.quota.quota_remaining], [true, 11]);
  await act(() => window.dispatchEvent(new window.Event("online")));
  await settled();
  assert.equal(shown.now.error.key, posts()[0].key);
  await start(shown, {}, { key: shown.now.error.key });
  assert.deepEqual([posts()[3].key, shown.now.error], [posts()[0].key, null]);
});

test("a spend that nobody answers is an error with its key", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  reads = [quotaOf(12)];
  const shown = await use();
  const { result } = await start(shown);
  for (const number of [0, 1, 2]) {
    posts()[number].reject(new TypeError("fetch failed"));
    await settled();
    await pass(5);
  }
  assert.equal(await result, null);
  assert.ok(shown.now.error instanceof QuotaUnreachable);
  assert.match(shown.now.error.key, /^[0-9a-f]{32}$/);
});

/** Render components that call `useQuota()` below a provider; `now` of the result is what each returned last. */
async function provide(options = {}, names = ["badge", "button"]) {
  const shown = { now: {} };
  const root = createRoot(document.createElement("div"));
  roots.push(root);
  const Part = ({ name }) => {
    shown.now[name] = useQuota();
    return null;
  };
  shown.render = (props) => {
    const all = { baseUrl: "https://q.example.com", getToken: async () => "t", ...props };
    const parts = names.map((name) => createElement(Part, { key: name, name }));
    return act(async () => root.render(createElement(QuotaProvider, all, parts)));
  };
  await shown.render(options);
  await settled();
  return shown;
}

test("the components below a provider share one read, and see one spend", async () => {
  reads = [quotaOf(12)];
  const shown = await provide();
  assert.deepEqual([gets().length, shown.now.badge.quota.quota_remaining], [1, 12]);
  await act(async () => void shown.now.button.consume());
  await settled();
  assert.equal(shown.now.badge.isSpending, true);
  await answer(posts()[0], consumption(5, 11), 201);
  const left = [shown.now.badge, shown.now.button].map(({ quota }) => quota.quota_remaining);
  assert.deepEqual([left, gets().length], [[11, 11], 1]);
});

test("another user below a provider begins with nothing of the last one's", async () => {
  reads = [quotaOf(12)];
  const shown = await provide({ userId: "user_1" });
  reads = [];
  await shown.render({ userId: "user_2" });
  await settled();
  assert.deepEqual([shown.now.badge.quota, shown.now.badge.isLoading, gets().length], [null, true, 2]);
});

test("a provider that nobody reads from reads nothing", async () => {
  await provide({}, []);
  assert.equal(gets().length, 0);
});

test("a hook without a provider and without arguments says what it needs", async () => {
  let thrown;
  const Alone = () => {
    try {
      useQuota();
    } catch (error) {
      thrown = error;
    }
    return null;
  };
  const root = createRoot(document.createElement("div"));
  roots.push(root);
  await act(async () => root.render(createElement(Alone)));
  const message = "useQuota() needs a <QuotaProvider> above it, or the argument { baseUrl, getToken }.";
  assert.equal(thrown.message, message);
});

test("an address from an unset variable is an error that is shown, not a loading without end", async () => {
  const shown = await use({ baseUrl: undefined });
  assert.match(shown.now.error.message, /^The argument baseUrl is missing/);
  assert.equal(shown.now.isLoading, false);
});

test("against the running service: read, spend, exhausted", async () => {
  globalThis.fetch = realFetch;
  const user = newUser();
  const shown = await use({ baseUrl: SITE, getToken: signedIn(user).getToken, userId: user });
  await until(() => shown.now.quota);
  assert.equal(shown.now.quota.quota_remaining, 20);
  await act(() => Promise.all([shown.now.consume({ cost: 9 }), shown.now.consume({ cost: 9 })]));
  assert.equal(shown.now.quota.quota_remaining, 11);
  await act(() => shown.now.consume({ cost: 9 }));
  await act(() => shown.now.consume({ cost: 3 }));
  assert.deepEqual([shown.now.error.code, shown.now.quota.quota_remaining], ["quota_exhausted", 2]);
});

async function until(holds) {
  for (let tries = 0; !holds() && tries < 500; tries += 1) {
    await act(() => new Promise((resolve) => setTimeout(resolve, 10)));
  }
}
