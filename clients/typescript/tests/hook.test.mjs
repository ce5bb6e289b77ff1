import assert from "node:assert/strict";
import { after, afterEach, beforeEach, mock, test } from "node:test";
import { Window } from "happy-dom";

const window = new Window({ url: "https://app.example.com/" });
Object.assign(globalThis, { window, document: window.document, IS_REACT_ACT_ENVIRONMENT: true });
globalThis.navigator ??= window.navigator; // node has its own from version 21 on
const { act, createElement, StrictMode } = await import("react");
const { createRoot } = await import("react-dom/client");
const { QuotaExhausted, QuotaUnreachable } = await import("quotasite-client");
const { useQuota } = await import("quotasite-client/react");
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
const consumption = (seq, quota_remaining) => ({ id: `c-${seq}`, seq, cost: 1, quota: quotaOf(quota_remaining) });
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
      const answer = (body, status = 200) => {
        const type = status < 400 ? "application/json" : "application/problem+json";
        resolve(new Response(JSON.stringify(body), { status, headers: { "Content-Type": type } }));
      };
      const request = { method, url, token: headers.Authorization, answer, reject };
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

test("of two spends at once the later in the ledger is shown, in whatever order they are answered", async () => {
  reads = [quotaOf(12)];
  const shown = await use();
  await start(shown);
  await start(shown);
  await answer(posts()[1], consumption(6, 10), 201);
  await answer(posts()[0], consumption(5, 11), 201);
  assert.equal(shown.now.quota.quota_remaining, 10);
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

test("a spend with a key of its own is followed by a read, for its answer may be old", async () => {
  reads = [quotaOf(5)];
  const shown = await use();
  await start(shown, {}, { key: "k-1" });
  await answer(posts()[0], consumption(2, 19), 201);
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

test("against the running service: read, spend, exhausted", async () => {
  globalThis.fetch = realFetch;
  const user = newUser();
  const shown = await use({ baseUrl: SITE, getToken: signedIn(user).getToken, userId: user });
  await until(() => shown.now.quota);
  assert.equal(shown.now.quota.quota_remaining, 20);
  await act(() => Promise.all([shown.now.consume({ cost: 9 }), shown.now.consume({ cost: 9 })]));
  assert.equal(shown.now.quota.quota_remaining, 2);
  await act(() => shown.now.consume({ cost: 3 }));
  assert.deepEqual([shown.now.error.code, shown.now.quota.quota_remaining], ["quota_exhausted", 2]);
});

async function until(holds) {
  for (let tries = 0; !holds() && tries < 500; tries += 1) {
    await act(() => new Promise((resolve) => setTimeout(resolve, 10)));
  }
}
