/** Quotasite's API, version 1: a client for the signed-in user, and one for servers with a service key. */

import { connect, newKey, type GetToken, type Site } from "./connection.js";
import type { components } from "./schema.js";

export { QuotaError, QuotaExhausted, QuotaProblem, QuotaUnreachable } from "./errors.js";
export type { GetToken, Site } from "./connection.js";

type Schemas = components["schemas"];
export type Quota = Schemas["Quota"];
export type Consumption = Schemas["Consumption"];
export type ConsumeRequest = Schemas["ConsumeRequest"];

export interface Page {
  limit?: number;
  cursor?: string;
}
/** The Idempotency-Key of one action: however often the action is sent with it, it is carried out once. */
export interface Keyed {
  key: string;
}

export type QuotaClient = ReturnType<typeof createQuotaClient>;
export type ServiceClient = ReturnType<typeof createServiceClient>;

/** The quota of the user whose session token `getToken` returns. Every call succeeds or throws a QuotaError. */
export function createQuotaClient({ getToken, ...site }: Site & { getToken: GetToken }) {
  const send = connect(site, getToken);
  return {
    quota: () => send("get", "/api/v1/quota", {}),
    /** Spend, all or nothing; each call is a new action unless it has the key of an earlier one. */
    consume: (body: ConsumeRequest = {}, { key = newKey() }: Partial<Keyed> = {}) =>
      send("post", "/api/v1/quota/consume", { body, key }),
    history: (page: Page = {}) => send("get", "/api/v1/quota/history", { query: page }),
    plans: () => send("get", "/api/v1/plans", {}),
  };
}

/** Every user's quota, for your own servers. The key must never reach a browser. */
export function createServiceClient({ serviceKey, ...site }: Site & { serviceKey: string }) {
  const send = connect(site, () => Promise.resolve(serviceKey));
  return {
    quota: (user_id: string) => send("get", "/api/v1/users/{user_id}/quota", { path: { user_id } }),
    consume: (user_id: string, body: ConsumeRequest, { key }: Keyed) =>
      send("post", "/api/v1/users/{user_id}/consume", { path: { user_id }, body, key }),
    refund: (user_id: string, consumption_id: string, body: Schemas["RefundRequest"], { key }: Keyed) =>
      send("post", "/api/v1/users/{user_id}/consumptions/{consumption_id}/refund", {
        path: { user_id, consumption_id },
        body,
        key,
      }),
    adjust: (user_id: string, body: Schemas["AdjustRequest"], { key }: Keyed) =>
      send("post", "/api/v1/users/{user_id}/adjust", { path: { user_id }, body, key }),
    reset: (user_id: string, body: Schemas["ResetRequest"], { key }: Keyed) =>
      send("post", "/api/v1/users/{user_id}/reset", { path: { user_id }, body, key }),
    changePlan: (user_id: string, body: Schemas["ChangePlanRequest"], { key }: Keyed) =>
      send("put", "/api/v1/users/{user_id}/plan", { path: { user_id }, body, key }),
    history: (user_id: string, page: Page = {}) =>
      send("get", "/api/v1/users/{user_id}/history", { path: { user_id }, query: page }),
    explain: (user_id: string, query: { at?: string; cost?: number } = {}) =>
      send("get", "/api/v1/users/{user_id}/explain", { path: { user_id }, query }),
    plans: () => send("get", "/api/v1/plans", {}),
  };
}
