/** One request of the schema: typed, with the token, and retried where that is safe. */

import { QuotaError, QuotaExhausted, QuotaProblem, QuotaUnreachable } from "./errors.js";
import type { components, paths } from "./schema.js";

/** Clerk's `getToken`, or a function like it: it returns null if no user is signed in. */
export type GetToken = (options?: { skipCache?: boolean }) => Promise<string | null>;

export interface Site {
  /** The address of the service, such as https://quota.example.com. */
  baseUrl: string;
  /** Replaces the global `fetch`. */
  fetch?: typeof fetch;
  /** The time limit of one attempt, in milliseconds. */
  timeout?: number;
}

type Method = "get" | "post" | "put";
type Json<T> = T extends { content: { "application/json": infer Body } } ? Body : never;
type PathWith<M extends Method> = {
  [P in keyof paths]: paths[P][M] extends { responses: unknown } ? P : never;
}[keyof paths];
type Answer<Operation> = Operation extends { responses: infer Responses }
  ? Json<Responses[keyof Responses & (200 | 201)]>
  : never;
type Parts<Operation> = (Operation extends { parameters: { path: infer Path } } ? { path: Path } : unknown) &
  (Operation extends { parameters: { query?: infer Query } } ? { query?: Query } : unknown) &
  (Operation extends { requestBody: infer Body } ? { body: Json<Body>; key: string } : unknown);

interface AnyParts {
  path?: Record<string, string>;
  query?: Record<string, string | number | undefined>;
  body?: unknown;
  key?: string;
}

const PAUSES = [300, 1_200]; // milliseconds before the second attempt and the third
const MAX_PAUSE = 5_000; // milliseconds; users wait no longer, so a longer Retry-After is thrown at once
const TIMEOUT = 15_000;

export type Send = ReturnType<typeof connect>;

/**
 * Return a function that sends one request and returns the body of its success, or throws a QuotaError.
 *
 * Every write has a key, so every request can be retried: up to twice after a lost response or a 5xx, and
 * once more with a fresh token after a 401.
 */
export function connect(site: Site, getToken: GetToken) {
  const doFetch: typeof fetch = site.fetch ?? ((...request) => globalThis.fetch(...request));

  async function attempt(method: Method, url: string, parts: AnyParts, token: string | null): Promise<unknown> {
    const headers: Record<string, string> = { Accept: "application/json" };
    if (token) headers["Authorization"] = `Bearer ${token}`;
    if (parts.key) headers["Idempotency-Key"] = parts.key;
    const request: RequestInit = {
      method: method.toUpperCase(),
      headers,
      credentials: "omit",
      redirect: "error",
      signal: AbortSignal.timeout(site.timeout ?? TIMEOUT),
    };
    if (parts.body !== undefined) {
      headers["Content-Type"] = "application/json";
      request.body = JSON.stringify(parts.body);
    }
    let answer: Response | undefined;
    let body: unknown;
    try {
      answer = await doFetch(url, request);
      body = await answer.json();
    } catch (cause) {
      const reason = answer
        ? `the response (${answer.status}) broke off or came from another server`
        : "no response came";
      throw new QuotaUnreachable(`The quota service could not be reached: ${reason}.`, parts.key, { cause });
    }
    if (answer.ok) return body;
    throw refusal(answer, body, parts.key);
  }

  async function persist(...request: Parameters<typeof attempt>): Promise<unknown> {
    for (const pause of PAUSES) {
      try {
        return await attempt(...request);
      } catch (error) {
        const minimum = pauseAfter(error);
        if (minimum === null || minimum > MAX_PAUSE) throw error;
        await sleep(Math.max(minimum, pause * (0.5 + Math.random())));
      }
    }
    return attempt(...request);
  }

  async function tokenFor(key: string | undefined, options?: { skipCache: true }): Promise<string | null> {
    try {
      return await getToken(options);
    } catch (cause) {
      throw new QuotaUnreachable("The session token could not be fetched.", key, { cause });
    }
  }

  return async <M extends Method, P extends PathWith<M>>(
    method: M,
    path: P,
    parts: Parts<paths[P][M]>,
  ): Promise<Answer<paths[P][M]>> => {
    const given = parts as AnyParts;
    const url = address(site.baseUrl, path, given);
    const token = await tokenFor(given.key);
    try {
      return (await persist(method, url, given, token)) as Answer<paths[P][M]>;
    } catch (error) {
      if (!(error instanceof QuotaProblem && error.status === 401)) throw error;
      const fresh = await tokenFor(given.key, { skipCache: true });
      if (!fresh || fresh === token) throw error;
      return (await persist(method, url, given, fresh)) as Answer<paths[P][M]>;
    }
  };
}

/** Return a key for one action. `randomUUID` would be missing on a page without https. */
export function newKey(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) =>
    byte.toString(16).padStart(2, "0"),
  ).join("");
}

function address(baseUrl: string, path: string, { path: names = {}, query = {} }: AnyParts): string {
  const named = path.replace(/\{(\w+)\}/g, (_, name: string) => encodeURIComponent(names[name] ?? ""));
  const parameters = Object.entries(query).flatMap(([name, value]) =>
    value === undefined ? [] : [[name, String(value)]],
  );
  return baseUrl.replace(/\/+$/, "") + named + (parameters.length ? `?${new URLSearchParams(parameters)}` : "");
}

function refusal({ status, headers }: Response, body: unknown, key: string | undefined): QuotaError {
  if (!headers.get("Content-Type")?.startsWith("application/problem+json")) {
    const message = `The quota service could not be reached: the response (${status}) came from another server.`;
    return new QuotaUnreachable(message, key);
  }
  const problem = body as components["schemas"]["Problem"];
  return problem.code === "quota_exhausted"
    ? new QuotaExhausted(problem as components["schemas"]["QuotaExhausted"], headers, key)
    : new QuotaProblem(problem, headers, key);
}

/** Return the least pause before a retry, in milliseconds; null if a retry would fail in the same way. */
function pauseAfter(error: unknown): number | null {
  if (error instanceof QuotaUnreachable) return 0;
  if (error instanceof QuotaProblem && error.status >= 500) return 1_000 * (error.retry_after ?? 0);
  return null;
}

function sleep(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}
