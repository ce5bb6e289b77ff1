/** One request as the schema knows it: typed, with the token, and sent again where that is safe. */

import { QuotaError, QuotaExhausted, QuotaProblem, QuotaUnreachable } from "./errors.js";
import type { components, paths } from "./schema.js";

/** Clerk's `getToken`, or what behaves alike: null when nobody is signed in. */
export type GetToken = (options?: { skipCache?: boolean }) => Promise<string | null>;

export interface Site {
  /** The address of the service, such as https://quota.example.com. */
  baseUrl: string;
  /** Stands for the global `fetch`. */
  fetch?: typeof fetch;
  /** Milliseconds for which one attempt may last. */
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
const LONGEST_PAUSE = 5_000; // people wait no longer: a longer Retry-After is told instead
const TIMEOUT = 15_000;

export type Send = ReturnType<typeof connect>;

/**
 * Return a function that sends one request and gives the body of its success, or throws a QuotaError.
 *
 * Every write has a key, so that each request may be sent again: twice where no answer came or a 5xx,
 * and once more with a fresh token after a 401.
 */
export function connect(site: Site, getToken: GetToken) {
  const ask: typeof fetch = site.fetch ?? ((...request) => globalThis.fetch(...request));

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
      answer = await ask(url, request);
      body = await answer.json();
    } catch (cause) {
      const why = answer ? `the answer (${answer.status}) is not its own, or broke off` : "no answer came";
      throw new QuotaUnreachable(`The quota could not be reached: ${why}.`, parts.key, { cause });
    }
    if (answer.ok) return body;
    throw refusal(answer, body, parts.key);
  }

  async function persist(...request: Parameters<typeof attempt>): Promise<unknown> {
    for (const pause of PAUSES) {
      try {
        return await attempt(...request);
      } catch (error) {
        const asked = pauseAfter(error);
        if (asked === null || asked > LONGEST_PAUSE) throw error;
        await sleep(Math.max(asked, pause * (0.5 + Math.random())));
      }
    }
    return attempt(...request);
  }

  async function tokenFor(key: string | undefined, options?: { skipCache: true }): Promise<string | null> {
    try {
      return await getToken(options);
    } catch (cause) {
      throw new QuotaUnreachable("No session token could be had.", key, { cause });
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

/** A key for one act. Not randomUUID, which a page without https lacks. */
export function newKey(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) =>
    byte.toString(16).padStart(2, "0"),
  ).join("");
}

function address(baseUrl: string, path: string, { path: names = {}, query = {} }: AnyParts): string {
  const named = path.replace(/\{(\w+)\}/g, (_, name: string) => encodeURIComponent(names[name] ?? ""));
  const asked = Object.entries(query).flatMap(([name, value]) =>
    value === undefined ? [] : [[name, String(value)]],
  );
  return baseUrl.replace(/\/+$/, "") + named + (asked.length ? `?${new URLSearchParams(asked)}` : "");
}

function refusal({ status, headers }: Response, body: unknown, key: string | undefined): QuotaError {
  if (!headers.get("Content-Type")?.startsWith("application/problem+json")) {
    return new QuotaUnreachable(`The quota could not be reached: the answer (${status}) is not its own.`, key);
  }
  const problem = body as components["schemas"]["Problem"];
  return problem.code === "quota_exhausted"
    ? new QuotaExhausted(problem as components["schemas"]["QuotaExhausted"], headers, key)
    : new QuotaProblem(problem, headers, key);
}

/** Milliseconds to wait before another attempt, 0 if any will do; null if it would be answered alike. */
function pauseAfter(error: unknown): number | null {
  if (error instanceof QuotaUnreachable) return 0;
  if (error instanceof QuotaProblem && error.status >= 500) return 1_000 * (error.retry_after ?? 0);
  return null;
}

function sleep(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}
