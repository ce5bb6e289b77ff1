/**
 * The quota API as a web app should call it: fresh tokens, safe retries, and a refusal that is not an error.
 * This module knows nothing of the page, and gets everything with side effects passed in, so that it runs in
 * Node too.
 */

const PAUSES = [1_000, 3_000]; // milliseconds before the second and the third attempt
const MAX_PAUSE = 5_000; // milliseconds; a longer Retry-After is shortened to this
const ATTEMPT_TIMEOUT = 10_000; // milliseconds

/** There is no session, or a fresh token was refused too: the user must sign in again. */
export class SessionEnded extends Error {}

/** Three attempts got no usable response. Whether the request was carried out is unknown. */
export class Unreachable extends Error {}

/** The server refused the request; `message` is one plain sentence for people. */
export class Problem extends Error {
  constructor(status, body) {
    super(body?.detail ?? `The server returned status ${status}.`);
    this.status = status;
    this.code = body?.code ?? "unknown";
  }
}

/**
 * `getToken({fresh})` resolves to a session token, or to null without a session; it rejects if no token can
 * be fetched now. `onRetry` is called before each pause.
 */
export function createApi({ getToken, fetch, wait, onRetry = () => {} }) {
  /** Send once, and again with a fresh token after a 401; null stands for no usable response. */
  async function attempt(method, path, headers, body) {
    try {
      for (const fresh of [false, true]) {
        const token = await getToken({ fresh });
        if (token === null) throw new SessionEnded();
        const answer = await fetch(path, {
          method,
          headers: { ...headers, Authorization: `Bearer ${token}` },
          body,
          cache: "no-store",
          signal: AbortSignal.timeout(ATTEMPT_TIMEOUT),
        });
        if (answer.status !== 401) {
          const retryAfter = Number(answer.headers.get("Retry-After")) * 1_000 || 0;
          return { status: answer.status, body: await answer.json(), retryAfter };
        }
      }
    } catch (error) {
      if (error instanceof SessionEnded) throw error;
      return null; // also if the response was cut off or is not JSON
    }
    throw new SessionEnded();
  }

  async function send(method, path, headers = {}, body = undefined) {
    for (let tries = 0; ; tries += 1) {
      const answer = await attempt(method, path, headers, body);
      if (answer && answer.status < 500) return answer;
      if (tries === PAUSES.length) throw new Unreachable();
      onRetry();
      await wait(Math.min(Math.max(PAUSES[tries], answer?.retryAfter ?? 0), MAX_PAUSE));
    }
  }

  async function get(path) {
    const { status, body } = await send("GET", path);
    if (status !== 200) throw new Problem(status, body);
    return body;
  }

  return {
    quota: () => get("/api/v1/quota"),

    history: (cursor, limit) =>
      get(`/api/v1/quota/history?limit=${limit}${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`),

    /** Spend 1 unit under an idempotency key, once however often it is sent; return the quota or the refusal. */
    async consume(key) {
      const headers = { "Content-Type": "application/json", "Idempotency-Key": key };
      const { status, body } = await send("POST", "/api/v1/quota/consume", headers, "{}");
      if (status === 429 && body.code === "quota_exhausted") return { granted: false, refusal: body };
      if (status !== 201) throw new Problem(status, body);
      return { granted: true, quota: body.quota };
    },
  };
}
