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
type Success<Operation> = Operation extends { responses: infer Responses }
  ? Responses[keyof Responses & (200 | 201)]
  : never;
type Replayable = { headers: { "Idempotent-Replayed": unknown } };
/** `More` for a write: it has a key, and its answer may be a replay. */
type IfWrite<Operation, More> = Success<Operation> extends Replayable ? More : unknown;
type Answer<Operation> = Json<Success<Operation>> & IfWrite<Operation, Replay>;
type Parts<Operation> = (Operation extends { parameters: { path: infer Path } } ? { path: Path } : unknown) &
  (Operation extends { parameters: { query?: infer Query } } ? { query?: Query } : unknown) &
  (Operation extends { requestBody: infer Body } ? { body: Json<Body> } : unknown) &
  IfWrite<Operation, { key: string }>;

/** What the answer to a write has besides its body. */
export interface Replay {
  /**
   * Whether this key was carried out before: by an earlier call, or by an attempt of this call whose response was
   * lost. The answer is then the first one again, with the balance of that time.
   */
  replayed: boolean;
}

interface AnyParts {
  path?: Record<string, string>;
  query?: Record<string, string | number | boolean | undefined>;
  body?: unknown;
  key?: string;
}
interface Order {
  method: Method;
  url: string;
  parts: AnyParts;
  /** Whether an attempt may have been carried out, although no response says so. */
  isSent: boolean;
}

const PAUSES = [300, 1_200]; // milliseconds before the second attempt and the third
const MAX_PAUSE = 5_000; // milliseconds; users wait no longer, so a longer Retry-After is thrown at once
const TIMEOUT = 15_000;
const MAX_TIMER = 2 ** 31 - 1; // milliseconds; setTimeout acts at once if it gets more
const SIGNED_OUT = {
  type: "about:blank",
  title: "Unauthorized",
  status: 401,
  code: "token_missing",
  detail: "You are signed out: sign in to use your quota.",
} as const;

export type Send = ReturnType<typeof connect>;

/**
 * Return a function that sends one request and returns the body of its success, or throws a QuotaError.
 *
 * Every write has a key, so every request can be retried: up to twice after a lost response or a 5xx, and
 * once more with a fresh token after a 401.
 */
export function connect(site: Site, getToken: GetToken) {
  const doFetch: typeof fetch = site.fetch ?? ((...request) => globalThis.fetch(...request));

  async function attempt(order: Order, token: string): Promise<unknown> {
    const { url, parts } = order;
    const giveUp = new AbortController(); // React Native has no AbortSignal.timeout
    const request = { ...requestOf(order, token), signal: giveUp.signal };
    const timeout = site.timeout ?? TIMEOUT;
    const stop = later(timeout, () => giveUp.abort(new Error(`No response came within ${timeout} ms.`)));
    let answer: Response | undefined;
    try {
      answer = await doFetch(url, request);
      if (isRedirect(answer)) throw elsewhere("redirects", answer, parts.key);
      const body: unknown = await answer.json();
      if (answer.ok) return parts.key ? { ...(body as object), ...replay(answer) } : body;
      throw refusal(answer, body, parts.key);
    } catch (cause) {
      if (cause instanceof QuotaError) throw cause;
      if (answer) throw elsewhere("broke off or came from another server", answer, parts.key, cause);
      if (isImpossible(url, request)) {
        throw new QuotaError("The quota service cannot be asked from here.", parts.key, { cause });
      }
      const message = "The quota service could not be reached: no response came.";
      throw new QuotaUnreachable(message, parts.key, { cause });
    } finally {
      stop();
    }
  }

  async function persist(order: Order, token: string): Promise<unknown> {
    for (let retries = 0; ; retries += 1) {
      try {
        return await attempt(order, token);
      } catch (error) {
        const minimum = pauseAfter(error);
        if (minimum !== null) order.isSent = true;
        const pause = PAUSES[retries];
        if (minimum === null || pause === undefined || minimum > MAX_PAUSE) throw error;
        await sleep(Math.max(minimum, pause * (0.5 + Math.random())));
      }
    }
  }

  async function tokenFor(key: string | undefined, options?: { skipCache: true }): Promise<string> {
    try {
      const token = await getToken(options);
      if (token) return token;
    } catch (cause) {
      if (cause instanceof QuotaError) throw cause;
      throw new QuotaUnreachable("The session token could not be fetched.", key, { cause });
    }
    throw new QuotaProblem(SIGNED_OUT, new Headers(), key);
  }

  async function withToken(order: Order): Promise<unknown> {
    const token = await tokenFor(order.parts.key);
    try {
      return await persist(order, token);
    } catch (error) {
      if (!(error instanceof QuotaProblem && error.status === 401)) throw error;
      const fresh = await tokenFor(order.parts.key, { skipCache: true });
      if (fresh === token) throw error;
      return persist(order, fresh);
    }
  }

  return async <M extends Method, P extends PathWith<M>>(
    method: M,
    path: P,
    parts: Parts<paths[P][M]>,
  ): Promise<Answer<paths[P][M]>> => {
    const given = parts as AnyParts;
    if ("key" in given) required("{ key }", given.key, "the id of this action, the same for each retry of it");
    const order: Order = { method, url: address(site.baseUrl, path, given), parts: given, isSent: false };
    try {
      return (await withToken(order)) as Answer<paths[P][M]>;
    } catch (error) {
      if (error instanceof QuotaError) {
        // A 429 is a decision: with a key that was carried out it would be the first response again.
        error.outcome_unknown = order.isSent && "key" in given && !(error instanceof QuotaExhausted);
      }
      throw error;
    }
  };
}

/** Return a key for one action. `randomUUID` is missing on a page without https, `crypto` in React Native. */
export function newKey(): string {
  const bytes = Uint8Array.from({ length: 16 }, () => Math.random() * 256);
  globalThis.crypto?.getRandomValues(bytes);
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Act once after that time, however long; return a function that prevents it. */
export function later(milliseconds: number, act: () => void): () => void {
  let timer: ReturnType<typeof setTimeout>;
  const wait = (rest: number): void => {
    const step = Math.min(rest, MAX_TIMER);
    timer = setTimeout(() => (rest > step ? wait(rest - step) : act()), step);
  };
  wait(milliseconds);
  return () => clearTimeout(timer);
}

/** Return the value of an argument; if it is missing, throw a QuotaError that says what to pass. */
export function required(name: string, value: string | undefined, what: string): string {
  if (typeof value === "string" && value) return value;
  throw new QuotaError(`The argument ${name} is missing or empty. Pass ${what}.`);
}

function address(baseUrl: string, path: string, { path: names = {}, query = {} }: AnyParts): string {
  const site = required("baseUrl", baseUrl, "the address of the service, such as https://quota.example.com");
  const named = path.replace(/\{(\w+)\}/g, (_, name: string) =>
    encodeURIComponent(required(name, names[name], "an id as the service knows it")),
  );
  const parameters = Object.entries(query).flatMap(([name, value]) =>
    value === undefined ? [] : [`${name}=${encodeURIComponent(value)}`],
  );
  return site.replace(/\/+$/, "") + named + (parameters.length ? `?${parameters.join("&")}` : "");
}

function requestOf({ method, parts }: Order, token: string): RequestInit {
  const headers: Record<string, string> = { Accept: "application/json", Authorization: `Bearer ${token}` };
  if (parts.key) headers["Idempotency-Key"] = parts.key;
  if (parts.body !== undefined) headers["Content-Type"] = "application/json";
  return {
    method: method.toUpperCase(),
    headers,
    ...(parts.body !== undefined && { body: JSON.stringify(parts.body) }),
    credentials: "omit",
    redirect: "manual", // Cloudflare Workers do not have "error"
  };
}

function replay({ headers }: Response): Replay {
  return { replayed: headers.get("Idempotent-Replayed") === "true" };
}

/** In a browser a redirect that is not followed has the status 0. */
function isRedirect({ type, status }: Response): boolean {
  return type === "opaqueredirect" || (status >= 300 && status < 400);
}

/** Whether the runtime refuses the request itself, such as an option that it does not have. */
function isImpossible(url: string, request: RequestInit): boolean {
  try {
    new Request(url, request);
    return false;
  } catch (error) {
    return !(error instanceof ReferenceError); // a runtime without Request
  }
}

function elsewhere(what: string, { status, headers }: Response, key?: string, cause?: unknown): QuotaUnreachable {
  const response = status ? `the response (${status})` : "the response";
  const message = `The quota service could not be reached: ${response} ${what}.`;
  return new QuotaUnreachable(message, key, { cause, headers });
}

function refusal(answer: Response, body: unknown, key: string | undefined): QuotaError {
  const { headers } = answer;
  if (!headers.get("Content-Type")?.startsWith("application/problem+json")) {
    return elsewhere("came from another server", answer, key);
  }
  const problem = body as components["schemas"]["Problem"];
  return problem.code === "quota_exhausted"
    ? new QuotaExhausted(problem as components["schemas"]["QuotaExhausted"], headers, key)
    : new QuotaProblem(problem, headers, key);
}

/** Return the least pause before a retry, in milliseconds; null if a retry would fail in the same way. */
function pauseAfter(error: unknown): number | null {
  const mayPass = error instanceof QuotaUnreachable || (error instanceof QuotaProblem && error.status >= 500);
  return mayPass ? 1_000 * (error.retry_after ?? 0) : null;
}

function sleep(milliseconds: number): Promise<void> {
  return new Promise((resolve) => later(milliseconds, resolve));
}
