import assert from "node:assert/strict";
import { createServer } from "node:net";
import { test } from "node:test";
import {
  createQuotaClient,
  createServiceClient,
  nextReset,
  QuotaError,
  QuotaExhausted,
  QuotaProblem,
  QuotaUnreachable,
} from "quotasite-client";
import { SITE, mint, newUser, proxy, serviceKey, signedIn, unavailable } from "./site.mjs";

const service = createServiceClient({ baseUrl: SITE, serviceKey });

function clientOf(user, options = {}) {
  return createQuotaClient({ baseUrl: SITE, getToken: signedIn(user).getToken, ...options });
}

async function spent(user) {
  const { entries } = await service.history(user);
  return entries.filter(({ kind }) => kind === "consumed").map(({ cost }) => cost);
}

test("the quota of the signed-in user is read", async () => {
  const user = newUser();
  const quota = await clientOf(user).quota();
  assert.deepEqual([quota.user_id, quota.quota_limit, quota.quota_remaining], [user, 20, 20]);
});

test("a slash at the end of the address does no harm", async () => {
  assert.equal((await clientOf(newUser(), { baseUrl: `${SITE}/` }).quota()).quota_remaining, 20);
});

test("a spend takes units and tells what is left", async () => {
  const consumption = await clientOf(newUser()).consume({ cost: 3, metadata: { page: "home" } });
  assert.deepEqual([consumption.cost, consumption.quota.quota_remaining], [3, 17]);
});

test("a spend without an order costs 1, and each call is a spend", async () => {
  const user = newUser();
  const client = clientOf(user);
  await client.consume();
  await client.consume();
  assert.deepEqual(await spent(user), [1, 1]);
});

test("the same key again is the same consumption, and a replay", async () => {
  const user = newUser();
  const client = clientOf(user);
  const [first, again] = [await client.consume({}, { key: "k-1" }), await client.consume({}, { key: "k-1" })];
  assert.equal(again.id, first.id);
  assert.deepEqual([first.replayed, again.replayed], [false, true]);
  assert.deepEqual(await spent(user), [1]);
});

test("a lost response makes a replay of a spend with a key from outside, which may have been worked for", async (t) => {
  const { baseUrl } = await proxy(t, ["cut"]);
  const spends = createServiceClient({ baseUrl, serviceKey });
  assert.equal((await spends.consume(newUser(), { cost: 3 }, { key: "c-1" })).replayed, true);
});

test("a lost response makes no replay of a spend with a new key, which nothing else can have used", async (t) => {
  const { baseUrl, seen } = await proxy(t, ["cut"]);
  const { replayed, quota } = await clientOf(newUser(), { baseUrl }).consume({ cost: 3 });
  assert.deepEqual([replayed, quota.quota_remaining, seen.length], [false, 17, 2]);
});

test("the history comes in pages", async () => {
  const client = clientOf(newUser());
  await client.consume();
  const newest = await client.history({ limit: 1 });
  assert.deepEqual(newest.entries.map(({ kind }) => kind), ["consumed"]);
  const oldest = await client.history({ limit: 1, cursor: newest.next_cursor });
  assert.deepEqual(oldest.entries.map(({ kind }) => kind), ["opened"]);
  assert.equal(oldest.next_cursor, null);
});

test("the plans can be listed", async () => {
  assert.equal((await clientOf(newUser()).plans()).plans[0].allowance, 20);
});

test("an exhausted quota is told once, with the time of the reset", async (t) => {
  const user = newUser();
  const { baseUrl, seen } = await proxy(t);
  const client = clientOf(user, { baseUrl });
  await client.consume({ cost: 18 });
  const error = await client.consume({ cost: 5 }).catch((error) => error);
  assert.ok(error instanceof QuotaExhausted && error instanceof QuotaProblem);
  assert.deepEqual([error.status, error.code, error.cost, error.quota_remaining], [429, "quota_exhausted", 5, 2]);
  assert.match(error.message, /^Quota exhausted: 2 of 20 left/);
  assert.equal(error.resets_at, (await client.quota()).resets_at);
  assert.ok(error.retry_after > 86_000 && error.retry_after <= 86_400);
  assert.equal(seen.length, 3);
});

test("a refusal has a code for programs and a sentence for people", async () => {
  const error = await clientOf(newUser()).consume({ cost: 21 }).catch((error) => error);
  assert.ok(error instanceof QuotaProblem);
  assert.deepEqual([error.status, error.code], [422, "cost_exceeds_limit"]);
  assert.equal(error.detail, "A cost of 21 can never be paid: at most 20 can be spent at once.");
  assert.match(error.request_id, /^[A-Za-z0-9-]{1,64}$/);
});

test("an expired token is replaced by a fresh one, once, and the spend is one", async (t) => {
  const user = newUser();
  const { baseUrl, seen } = await proxy(t);
  const { getToken, asked } = signedIn(user, await mint(user, { exp: -60 }));
  const client = createQuotaClient({ baseUrl, getToken });
  assert.equal((await client.consume()).quota.quota_remaining, 19);
  assert.deepEqual(asked, [false, true]);
  assert.equal(seen.length, 2);
  assert.equal(seen[0].key, seen[1].key);
});

test("a fresh token that is refused too is the end", async (t) => {
  const user = newUser();
  const { baseUrl, seen } = await proxy(t);
  const getToken = ({ skipCache } = {}) => mint(user, { exp: skipCache ? -60 : -90 });
  const client = createQuotaClient({ baseUrl, getToken });
  const error = await client.quota().catch((error) => error);
  assert.deepEqual([error.status, error.code, seen.length], [401, "token_expired", 2]);
});

const SIGNED_OUT = [401, "token_missing", "You are signed out: sign in to use your quota."];

test("a user who has signed out meanwhile is asked to sign in", async (t) => {
  const user = newUser();
  const { baseUrl, seen } = await proxy(t);
  const getToken = async ({ skipCache } = {}) => (skipCache ? null : mint(user, { exp: -60 }));
  const error = await createQuotaClient({ baseUrl, getToken }).quota().catch((error) => error);
  assert.deepEqual([error.status, error.code, error.message, seen.length], [...SIGNED_OUT, 1]);
});

test("nobody signed in is asked to sign in, without a request", async (t) => {
  const { baseUrl, seen } = await proxy(t);
  const client = createQuotaClient({ baseUrl, getToken: async () => null });
  const error = await client.quota().catch((error) => error);
  assert.ok(error instanceof QuotaProblem);
  assert.deepEqual([error.status, error.code, error.message, seen.length], [...SIGNED_OUT, 0]);
});

test("a token that cannot be had is told as such", async () => {
  const client = createQuotaClient({ baseUrl: SITE, getToken: () => Promise.reject(new Error("offline")) });
  const error = await client.quota().catch((error) => error);
  assert.ok(error instanceof QuotaUnreachable);
  assert.equal(error.cause.message, "offline");
});

test("a spend whose answers are lost twice is carried out once", async (t) => {
  const user = newUser();
  const { baseUrl, seen } = await proxy(t, ["cut", "cut"]);
  const consumption = await clientOf(user, { baseUrl }).consume({ cost: 3 });
  assert.equal(consumption.quota.quota_remaining, 17);
  assert.equal(new Set(seen.map(({ key }) => key)).size, 1);
  assert.equal(seen.length, 3);
  assert.deepEqual(await spent(user), [3]);
});

test("a spend whose answers are all lost can be sent again with its key", async (t) => {
  const user = newUser();
  const { baseUrl, seen } = await proxy(t, ["cut", "cut", "cut"]);
  const client = clientOf(user, { baseUrl });
  const error = await client.consume({ cost: 3 }).catch((error) => error);
  assert.ok(error instanceof QuotaUnreachable);
  assert.equal(seen.length, 3);
  await client.consume({ cost: 3 }, { key: error.key });
  assert.deepEqual(await spent(user), [3]);
});

test("a service that comes up meanwhile is reached", async (t) => {
  const port = await freePort();
  const client = clientOf(newUser(), { baseUrl: `http://127.0.0.1:${port}` });
  const consumed = client.consume();
  setTimeout(() => proxy(t, [], port), 120);
  assert.equal((await consumed).quota.quota_remaining, 19);
});

test("a service that stays away is told after three attempts", async () => {
  const client = clientOf(newUser(), { baseUrl: `http://127.0.0.1:${await freePort()}` });
  await assert.rejects(client.quota(), QuotaUnreachable);
});

test("a short Retry-After is waited for", async (t) => {
  const { baseUrl, seen } = await proxy(t, [unavailable(2)]);
  assert.equal((await clientOf(newUser(), { baseUrl }).quota()).quota_remaining, 20);
  assert.ok(seen[1].at - seen[0].at >= 1_990);
});

test("a long Retry-After is told at once", async (t) => {
  const { baseUrl, seen } = await proxy(t, [unavailable(60)]);
  const error = await clientOf(newUser(), { baseUrl }).quota().catch((error) => error);
  assert.deepEqual([error.code, error.retry_after, seen.length], ["database_unavailable", 60, 1]);
});

test("an answer of a proxy's own is none of the service's", async (t) => {
  const faults = [
    { status: 502, headers: { "Content-Type": "application/json" }, body: '{"error": "bad gateway"}' },
    { status: 200, headers: { "Content-Type": "text/html" }, body: "<h1>Welcome to this network</h1>" },
  ];
  const { baseUrl, seen } = await proxy(t, faults);
  assert.equal((await clientOf(newUser(), { baseUrl }).quota()).quota_remaining, 20);
  assert.equal(seen.length, 3);
});

test("a redirect is not followed, and reported as one", async (t) => {
  const fault = { status: 308, headers: { Location: `${SITE}/api/v1/quota` } };
  const { baseUrl } = await proxy(t, [fault, fault, fault]);
  const error = await clientOf(newUser(), { baseUrl }).quota().catch((error) => error);
  assert.ok(error instanceof QuotaUnreachable);
  assert.match(error.message, /the response \(308\) redirects/);
});

test("a request that the runtime refuses is no lost one, and not sent again", async () => {
  let calls = 0;
  const fetch = async (url, request) => {
    calls += 1;
    return globalThis.fetch(url, request);
  };
  const error = await clientOf(newUser(), { baseUrl: "no address", fetch }).consume().catch((error) => error);
  assert.ok(error instanceof QuotaError && !(error instanceof QuotaUnreachable));
  assert.deepEqual([calls, error.outcome_unknown], [1, false]);
});

test("what a lost answer leaves unknown is said, until an answer decides it", async (t) => {
  const user = newUser();
  const outcome = async (faults, call) => {
    const { baseUrl } = await proxy(t, faults);
    return call(clientOf(user, { baseUrl })).then(() => "done", ({ outcome_unknown }) => outcome_unknown);
  };
  const spend = (client) => client.consume({ cost: 1 });
  assert.equal(await outcome(["cut", "cut", "cut"], spend), true);
  assert.equal(await outcome([unavailable(60)], spend), true);
  assert.equal(await outcome(["cut", { ...unavailable(1), status: 502, headers: {} }, "cut"], spend), true);
  assert.equal(await outcome([unavailable(60)], (client) => client.quota()), false);
  assert.equal(await outcome(["cut"], spend), "done");
  await clientOf(user).consume({ cost: 17 });
  assert.equal(await outcome([unavailable(1)], spend), false); // a 429
  assert.equal(await outcome([], (client) => client.consume({ cost: 21 })), false);
});

test("a spend that was lost before the user signed out stays unknown", async (t) => {
  const user = newUser();
  const { baseUrl } = await proxy(t, ["cut"]);
  let asked = 0;
  const getToken = async () => ((asked += 1) === 1 ? mint(user, { exp: -60 }) : null);
  const error = await createQuotaClient({ baseUrl, getToken }).consume().catch((error) => error);
  assert.deepEqual([error.code, error.outcome_unknown], ["token_missing", true]);
});

test("a long Retry-After of a proxy is reported at once too", async (t) => {
  const { baseUrl, seen } = await proxy(t, [{ status: 429, headers: { "Retry-After": "60" }, body: "slower" }]);
  const error = await clientOf(newUser(), { baseUrl }).quota().catch((error) => error);
  assert.ok(error instanceof QuotaUnreachable);
  assert.deepEqual([error.retry_after, seen.length], [60, 1]);
});

test("a timeout of more than a timer can count is no timeout of nothing", async () => {
  for (const timeout of [2 ** 31, Infinity]) {
    assert.equal((await clientOf(newUser(), { timeout }).quota()).quota_remaining, 20);
  }
});

test("a service that says nothing is given up after the timeout", async (t) => {
  const { baseUrl, seen } = await proxy(t, ["hang"]);
  await clientOf(newUser(), { baseUrl, timeout: 2_000 }).quota();
  assert.equal(seen.length, 2);
});

test("a server spends for a user and gives back, once per key", async () => {
  const user = newUser();
  const { id } = await service.consume(user, { cost: 5 }, { key: "c-1" });
  const refund = await service.refund(user, id, { amount: 2, reason: "timeout" }, { key: "r-1" });
  const again = await service.refund(user, id, { amount: 2, reason: "timeout" }, { key: "r-1" });
  assert.deepEqual([refund.amount, refund.quota.quota_remaining, again.id], [2, 17, refund.id]);
  await service.refund(user, id, { reason: "timeout" }, { key: "r-2" });
  const error = await service.refund(user, id, { reason: "timeout" }, { key: "r-3" }).catch((error) => error);
  assert.equal(error.code, "already_refunded");
});

test("a server adjusts, resets, changes the plan and asks why", async () => {
  const user = newUser();
  const adjusted = await service.adjust(user, { delta: -5, reason: "abuse" }, { key: "a-1" });
  assert.equal(adjusted.quota.quota_remaining, 15);
  assert.equal((await service.explain(user, { cost: 16 })).spend.code, "quota_exhausted");
  assert.equal((await service.reset(user, { reason: "sorry" }, { key: "s-1" })).quota_remaining, 20);
  assert.equal((await service.changePlan(user, { plan: "free" }, { key: "p-1" })).plan, "free");
  assert.equal((await service.quota(user)).quota_remaining, 20);
});

test("a key that is not known is a 401 that is not sent again", async (t) => {
  const { baseUrl, seen } = await proxy(t);
  const unknown = createServiceClient({ baseUrl, serviceKey: `qs_00000000_${"a".repeat(43)}` });
  const error = await unknown.quota(newUser()).catch((error) => error);
  assert.deepEqual([error.code, seen.length], ["key_unknown", 1]);
});

test("a user id with marks in it stays as it is", async () => {
  const user = `${newUser()}:a@b.c`;
  assert.equal((await service.quota(user)).user_id, user);
});

test("a user id cannot lead to another address", async () => {
  const error = await service.quota("me/quota?").catch((error) => error);
  assert.deepEqual([error.status, error.code], [404, "not_found"]);
});

const missing = (call) => call.then(
  () => "sent",
  (error) => (error.name === "QuotaError" ? error.message : error),
);

test("a write without a key is refused before it is sent, with what to pass", async (t) => {
  const { baseUrl, seen } = await proxy(t);
  const quotas = createServiceClient({ baseUrl, serviceKey });
  const message =
    "The argument { key } is missing or empty. Pass the id of this action, the same for each retry of it.";
  const calls = [
    quotas.consume("user_1", {}),
    quotas.consume("user_1", {}, {}),
    quotas.consume("user_1", {}, "c-1"),
    quotas.refund("user_1", "c", {}, { key: "" }),
    quotas.adjust("user_1", { delta: 1, reason: "sorry" }),
    quotas.reset("user_1", { reason: "sorry" }),
    quotas.changePlan("user_1", { plan: "free" }),
    clientOf("user_1", { baseUrl }).consume({}, { key: "" }),
  ];
  assert.deepEqual(await Promise.all(calls.map(missing)), calls.map(() => message));
  assert.equal(seen.length, 0);
});

test("a user id that is undefined or empty is refused before it is sent", async (t) => {
  const { baseUrl, seen } = await proxy(t);
  const quotas = createServiceClient({ baseUrl, serviceKey });
  const message = "The argument user_id is missing or empty. Pass an id as the service knows it.";
  for (const user of [undefined, null, ""]) {
    assert.equal(await missing(quotas.quota(user)), message);
    assert.equal(await missing(quotas.consume(user, {}, { key: "c-1" })), message);
  }
  const refund = quotas.refund("user_1", undefined, {}, { key: "r-1" });
  assert.match(await missing(refund), /^The argument consumption_id is missing/);
  assert.equal(seen.length, 0);
});

test("an address or a service key from an unset variable is named", async () => {
  const nowhere = createQuotaClient({ baseUrl: undefined, getToken: async () => "t" });
  assert.match(await missing(nowhere.quota()), /^The argument baseUrl is missing or empty\. Pass the address/);
  const keyless = createServiceClient({ baseUrl: SITE, serviceKey: "" });
  assert.match(await missing(keyless.quota("user_1")), /^The argument serviceKey is missing or empty\. Pass one that/);
});

const at = (resets_at, now, locale = "en-GB") =>
  nextReset({ resets_at: new Date(resets_at).toISOString() }, { now: new Date(now), locale }).text;

test("the next reset is shown with its day", () => {
  const now = "2026-09-24T10:52:10";
  assert.equal(at("2026-09-24T23:05", now), "today at 23:05");
  assert.equal(at("2026-09-25T10:52", now), "tomorrow at 10:52");
  assert.equal(at("2026-09-26T10:52", now), "Saturday, 26 September 2026 at 10:52");
  assert.equal(at("2026-09-23T10:52", now), "Wednesday, 23 September 2026 at 10:52");
});

test("the next reset is shown in the user's language", () => {
  const [then, now] = ["2026-09-25T10:52", "2026-09-24T10:52"];
  const texts = ["de", "fr", "ja", "ru"].map((locale) => at(then, now, locale));
  assert.deepEqual(texts, ["morgen um 10:52", "demain à 10:52", "明日 10:52", "завтра в 10:52"]);
});

test("the next reset is no minute too early, and its date is exact", () => {
  assert.equal(at("2026-09-24T10:52:04", "2026-09-24T10:00"), "today at 10:53");
  assert.equal(at("2026-09-24T23:59:30", "2026-09-24T10:00"), "tomorrow at 00:00");
  const resets_at = "2026-09-24T10:52:04.123456Z";
  assert.equal(nextReset({ resets_at }).date.toISOString(), "2026-09-24T10:52:04.123Z");
});

test("days of 23 and 25 hours are days", (t) => {
  const zone = process.env.TZ;
  process.env.TZ = "Europe/Berlin";
  t.after(() => (zone === undefined ? delete process.env.TZ : (process.env.TZ = zone)));
  assert.equal(at("2026-03-30T00:10", "2026-03-29T00:05"), "tomorrow at 00:10"); // 23 hours
  assert.equal(at("2026-10-25T23:50", "2026-10-25T00:05"), "today at 23:50"); // 24 hours and 45 minutes
});

test("a runtime without RelativeTimeFormat, such as React Native, gets the date", (t) => {
  const { RelativeTimeFormat } = Intl;
  t.after(() => (Intl.RelativeTimeFormat = RelativeTimeFormat));
  Intl.RelativeTimeFormat = undefined;
  assert.equal(at("2026-09-25T10:52", "2026-09-24T10:52"), "Friday, 25 September 2026 at 10:52");
});

test("a consumption says what refunds gave back, in a replay too", async () => {
  const user = newUser();
  const spend = () => service.consume(user, { cost: 5 }, { key: "c-1" });
  const first = await spend();
  await service.refund(user, first.id, { amount: 2, reason: "timeout" }, { key: "r-1" });
  const again = await spend();
  assert.deepEqual([first.refunded, again.refunded, again.replayed], [0, 2, true]);
});

test("a server reads a consumption", async () => {
  const user = newUser();
  const { id } = await service.consume(user, { cost: 5 }, { key: "c-1" });
  await service.refund(user, id, { reason: "timeout" }, { key: "r-1" });
  const found = await service.consumption(user, id);
  assert.deepEqual([found.id, found.cost, found.refunded, "replayed" in found], [id, 5, 5, false]);
  const error = await service.consumption(newUser(), id).catch((error) => error);
  assert.equal(error.code, "consumption_not_found");
});

test("a user checks what a spend would meet, and spends nothing", async () => {
  const user = newUser();
  const client = clientOf(user);
  await client.consume({ cost: 18 });
  const { allowed, cost, remaining_after, code } = await client.check({ cost: 2 });
  assert.deepEqual([allowed, cost, remaining_after, code], [true, 2, 0, null]);
  const refused = await client.check({ cost: 3 });
  assert.deepEqual([refused.allowed, refused.remaining_after, refused.code], [false, null, "quota_exhausted"]);
  assert.equal(refused.resets_at, (await client.quota()).resets_at);
  assert.equal((await client.check()).cost, 1);
  assert.deepEqual(await spent(user), [18]);
});

test("a server checks for a user; a lost response leaves nothing unknown", async (t) => {
  const { baseUrl, seen } = await proxy(t, ["cut", "cut", "cut"]);
  const error = await createServiceClient({ baseUrl, serviceKey }).check("user_1").catch((error) => error);
  assert.deepEqual([error.name, error.outcome_unknown, seen.length], ["QuotaUnreachable", false, 3]);
  const { allowed, code } = await service.check(newUser(), { cost: 21 });
  assert.deepEqual([allowed, code], [false, "cost_exceeds_limit"]);
});

test("a server lists users in pages", async () => {
  const [first, second] = [newUser(), newUser()];
  for (const user of [first, second]) await service.consume(user, { cost: 20 }, { key: "c-1" });
  const found = [];
  for (let cursor; cursor !== null; ) {
    const page = await service.users({ exhausted: true, limit: 1, cursor });
    found.push(...page.users);
    cursor = page.next_cursor;
  }
  assert.ok(found.every(({ quota_remaining }) => quota_remaining === 0));
  const ids = found.map(({ user_id }) => user_id);
  assert.deepEqual([ids.includes(first), ids.includes(second)], [true, true]);
});

test("an explanation has a sentence", async () => {
  const user = newUser();
  await service.consume(user, { cost: 18 }, { key: "c-1" });
  assert.match((await service.explain(user)).sentence, /20 units.*18 were used/);
});

function freePort() {
  return new Promise((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}
