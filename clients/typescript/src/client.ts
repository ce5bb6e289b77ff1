/** Quotasite's API, version 1: a client for the signed-in user, and one for servers with a service key. */

import { connect, newKey, required, type GetToken, type Replay, type Site } from "./connection.js";
import type { components, paths } from "./schema.js";

export { QuotaError, QuotaExhausted, QuotaProblem, QuotaUnreachable } from "./errors.js";
export { nextReset, type NextReset } from "./reset.js";
export type { GetToken, Replay, Site } from "./connection.js";

type Schemas = components["schemas"];
export type Quota = Schemas["Quota"];
export type Consumption = Schemas["Consumption"];
export type ConsumeRequest = Schemas["ConsumeRequest"];
export type CheckRequest = paths["/api/v1/quota/check"]["post"]["requestBody"]["content"]["application/json"];
export type UsersQuery = NonNullable<paths["/api/v1/users"]["get"]["parameters"]["query"]>;
/** The result of a spend. */
export type Spent = Consumption & Replay;

export interface Page {
  limit?: number;
  cursor?: string;
}
/** The Idempotency-Key of one action: however often the action is sent with it, it is carried out once. */
export interface Keyed {
  key: string;
}

const SERVICE_KEY = "one that manage.py create_service_key made, or the admin";

export type QuotaClient = ReturnType<typeof createQuotaClient>;
export type ServiceClient = ReturnType<typeof createServiceClient>;

/** The quota of the user whose session token `getToken` returns. Every call succeeds or throws a QuotaError. */
export function createQuotaClient({ getToken, ...site }: Site & { getToken: GetToken }) {
  const send = connect(site, getToken);
  return {
    quota: () => send("get", "/api/v1/quota", {}),
    /** Spend, all or nothing; each call is a new action unless it has the key of an earlier one. */
    consume: async (body: ConsumeRequest = {}, keyed: Partial<Keyed> = {}): Promise<Spent> => {
      const spent = await send("post", "/api/v1/quota/consume", { body, key: keyed.key ?? newKey() });
      // With a new key, a replay can only be of an attempt of this call whose response was lost.
      return { ...spent, replayed: spent.replayed && keyed.key !== undefined };
    },
    /** What a spend would meet now; it spends nothing. */
    check: (body: CheckRequest = {}) => send("post", "/api/v1/quota/check", { body }),
    history: (page: Page = {}) => send("get", "/api/v1/quota/history", { query: page }),
    plans: () => send("get", "/api/v1/plans", {}),
  };
}

/**
 * Every user's quota, for your own servers. The service key must never reach a browser.
 *
 * Each write needs a key, `{ key }`; a consumption that is `replayed` was spent, and perhaps worked for, before.
 */
export function createServiceClient({ serviceKey, ...site }: Site & { serviceKey: string }) {
  const send = connect(site, async () => required("serviceKey", serviceKey, SERVICE_KEY));
  return {
    quota: (user_id: string) => send("get", "/api/v1/users/{user_id}/quota", { path: { user_id } }),
    consume: (user_id: string, body: ConsumeRequest, keyed: Keyed) =>
      send("post", "/api/v1/users/{user_id}/consume", { path: { user_id }, body, key: keyed?.key }),
    /** What a spend would meet now; it spends nothing. */
    check: (user_id: string, body: CheckRequest = {}) =>
      send("post", "/api/v1/users/{user_id}/check", { path: { user_id }, body }),
    consumption: (user_id: string, consumption_id: string) =>
      send("get", "/api/v1/users/{user_id}/consumptions/{consumption_id}", { path: { user_id, consumption_id } }),
    refund: (user_id: string, consumption_id: string, body: Schemas["RefundRequest"], keyed: Keyed) =>
      send("post", "/api/v1/users/{user_id}/consumptions/{consumption_id}/refund", {
        path: { user_id, consumption_id },
        body,
        key: keyed?.key,
      }),
    adjust: (user_id: string, body: Schemas["AdjustRequest"], keyed: Keyed) =>
      send("post", "/api/v1/users/{user_id}/adjust", { path: { user_id }, body, key: keyed?.key }),
    reset: (user_id: string, body: Schemas["ResetRequest"], keyed: Keyed) =>
      send("post", "/api/v1/users/{user_id}/reset", { path: { user_id }, body, key: keyed?.key }),
    changePlan: (user_id: string, body: Schemas["ChangePlanRequest"], keyed: Keyed) =>
      send("put", "/api/v1/users/{user_id}/plan", { path: { user_id }, body, key: keyed?.key }),
    history: (user_id: string, page: Page = {}) =>
      send("get", "/api/v1/users/{user_id}/history", { path: { user_id }, query: page }),
    explain: (user_id: string, query: { at?: string; cost?: number } = {}) =>
      send("get", "/api/v1/users/{user_id}/explain", { path: { user_id }, query }),
    users: (query: UsersQuery = {}) => send("get", "/api/v1/users", { query }),
    plans: () => send("get", "/api/v1/plans", {}),
  };
}
