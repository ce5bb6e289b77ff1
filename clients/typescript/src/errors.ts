import type { components } from "./schema.js";

type Schemas = components["schemas"];

/** The error of every call that does not succeed; if of no subclass, the runtime cannot make the request. */
export class QuotaError extends Error {
  override readonly name: string = "QuotaError";
  /** The Idempotency-Key of a write: sent again with this key, the write is carried out once. */
  readonly key: string | undefined;
  /** True if this write may have been carried out all the same: with `key` it can be sent again safely. */
  outcome_unknown = false;
  /** Seconds to wait before a retry, if the response had Retry-After. */
  readonly retry_after: number | null;

  constructor(message: string, key?: string, options: ErrorOptions & { headers?: Headers } = {}) {
    super(message, options);
    this.key = key;
    this.retry_after = Number(options.headers?.get("Retry-After")) || null;
  }
}

/** No response of Quotasite arrived, or no token. */
export class QuotaUnreachable extends QuotaError {
  override readonly name: string = "QuotaUnreachable";
}

/** Quotasite refused the request. `code` is for programs; `detail`, which is also the message, is for users. */
export class QuotaProblem extends QuotaError {
  override readonly name: string = "QuotaProblem";
  readonly status: number;
  readonly code: Schemas["Problem"]["code"];
  readonly detail: string;
  /** The id of the request in the logs of the service. */
  readonly request_id: string | null;

  constructor(problem: Schemas["Problem"], headers: Headers, key?: string) {
    super(problem.detail, key, { headers });
    this.status = problem.status;
    this.code = problem.code;
    this.detail = problem.detail;
    this.request_id = headers.get("X-Request-Id");
  }
}

/** Too few units are left for this cost, until `resets_at`. */
export class QuotaExhausted extends QuotaProblem {
  override readonly name: string = "QuotaExhausted";
  readonly cost: number;
  readonly quota_limit: number;
  readonly quota_remaining: number;
  readonly resets_at: string;

  constructor(problem: Schemas["QuotaExhausted"], headers: Headers, key?: string) {
    super(problem, headers, key);
    this.cost = problem.cost;
    this.quota_limit = problem.quota_limit;
    this.quota_remaining = problem.quota_remaining;
    this.resets_at = problem.resets_at;
  }
}
