/**
 * The quota's API as a web app should call it: fresh tokens, safe retries, a refusal that is no error.
 * Nothing of the page is known here, and whatever touches the world is handed in, so that node can run it.
 */

const PAUSES = [1_000, 3_000]; // milliseconds before the second and the third attempt
const LONGEST_PAUSE = 5_000; // a server that asks for more is asked again by hand
const PATIENCE = 10_000; // milliseconds for one attempt

/** A fresh token was refused too: the user has to sign in again. */
export class SessionEnded extends Error {}

/** Three attempts brought no answer. Whether the request was carried out is unknown. */
export class Unreachable extends Error {}

/** The server understood, and refused; `message` is one plain sentence for people. */
export class Problem extends Error {
  constructor(status, body) {
    super(body?.detail ?? `The server answered with status ${status}.`);
    this.status = status;
    this.code = body?.code ?? "unknown";
  }
}

/**
 * `getToken({fresh})` gives a session token, null when there is no session, and rejects when it cannot
 * be asked for now. `onRetry` is told before each pause.
 */
export function createApi({ getToken, fetch, wait, onRetry = () => {} }) {
  /** Ask once, with a second token if the first is refused; null stands for no answer. */
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
          signal: AbortSignal.timeout(PATIENCE),
        });
        if (answer.status !== 401) {
          const retryAfter = Number(answer.headers.get("Retry-After")) * 1_000 || 0;
          return { status: answer.status, body: await answer.json(), retryAfter };
        }
      }
    } catch (error) {
      if (error instanceof SessionEnded) throw error;
      return null; // also when the answer was cut off, or is none of this server's
    }
    throw new SessionEnded();
  }

  async function send(method, path, headers = {}, body = undefined) {
    for (let tries = 0; ; tries += 1) {
      const answer = await attempt(method, path, headers, body);
      if (answer && answer.status < 500) return answer;
      if (tries === PAUSES.length) throw new Unreachable();
      onRetry();
      await wait(Math.min(Math.max(PAUSES[tries], answer?.retryAfter ?? 0), LONGEST_PAUSE));
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

    /** Spend under `key`, once however often it is sent: the new quota, and whether it was granted. */
    async consume(key) {
      const headers = { "Content-Type": "application/json", "Idempotency-Key": key };
      const { status, body } = await send("POST", "/api/v1/quota/consume", headers, "{}");
      if (status === 429 && body.code === "quota_exhausted") return { granted: false, refusal: body };
      if (status !== 201) throw new Problem(status, body);
      return { granted: true, quota: body.quota };
    },
  };
}
