import type { components } from "./schema.js";

type Schemas = components["schemas"];

/** Whatever a call ends with when it does not succeed. */
export class QuotaError extends Error {
  override readonly name: string = "QuotaError";
  /** The Idempotency-Key of the act, if it was one: sent again with it, the act is carried out once. */
  readonly key: string | undefined;

  constructor(message: string, key?: string, options?: ErrorOptions) {
    super(message, options);
    this.key = key;
  }
}

/** No answer of Quotasite's could be had. Whether a spend was carried out is not known: see `key`. */
export class QuotaUnreachable extends QuotaError {
  override readonly name: string = "QuotaUnreachable";
}

/** Quotasite refused. `code` is for programs; `detail`, which is also the message, is for people. */
export class QuotaProblem extends QuotaError {
  override readonly name: string = "QuotaProblem";
  readonly status: number;
  readonly code: Schemas["Problem"]["code"];
  readonly detail: string;
  /** To be found in the logs of the service. */
  readonly request_id: string | null;
  /** Seconds after which to try again, if the service said so. */
  readonly retry_after: number | null;

  constructor(problem: Schemas["Problem"], headers: Headers, key?: string) {
    super(problem.detail, key);
    this.status = problem.status;
    this.code = problem.code;
    this.detail = problem.detail;
    this.request_id = headers.get("X-Request-Id");
    this.retry_after = Number(headers.get("Retry-After")) || null;
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
