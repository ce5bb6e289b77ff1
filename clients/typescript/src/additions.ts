/** What the service adds to its schema next, written by hand until docs/openapi.yaml has it. */

import type { components as Known, paths as KnownPaths } from "./schema.js";

type Schemas = Known["schemas"];
type Consumption = Schemas["Consumption"] & {
  /** Units of this consumption that refunds have given back so far. */
  refunded: number;
};
type Only<Method extends string, Operation> = Record<Method, Operation> &
  Omit<{ get?: never; post?: never; put?: never }, Method>;
type Ok<Body> = { responses: { 200: { content: { "application/json": Body } } } };
type ForUser = { parameters: { path: { user_id: string } } };

export interface Check {
  allowed: boolean;
  cost: number;
  remaining_after: number | null;
  code: "quota_exhausted" | "cost_exceeds_limit" | null;
  detail: string;
  resets_at: string;
  retry_after: number | null;
  quota: Schemas["Quota"];
}
type CheckPost = Ok<Check> & { requestBody: { content: { "application/json": { cost?: number; action?: string } } } };

export interface UserPage {
  users: {
    user_id: string;
    email: string | null;
    plan: string;
    plan_source: Schemas["Explanation"]["plan_source"];
    quota_limit: number | null;
    quota_remaining: number;
    quota_used: number;
    last_reset_date: string;
    resets_at: string;
    updated_at: string;
    deleted_at: string | null;
  }[];
  next_cursor: string | null;
}
interface UsersQuery {
  plan?: string;
  exhausted?: boolean;
  deleted?: boolean;
  seen_since?: string;
  limit?: number;
  cursor?: string;
}

type Spending = "/api/v1/quota/consume" | "/api/v1/users/{user_id}/consume";
type Explaining = "/api/v1/users/{user_id}/explain";
type Created = { headers: { "Idempotent-Replayed": string }; content: { "application/json": Consumption } };

type Spend<P extends Spending> = Omit<KnownPaths[P]["post"], "responses"> & { responses: { 201: Created } };
type Explain = Omit<KnownPaths[Explaining]["get"], "responses"> & Ok<Schemas["Explanation"] & { sentence: string }>;

export type components = { schemas: Omit<Schemas, "Consumption"> & { Consumption: Consumption } };
export type paths = Omit<KnownPaths, Spending | Explaining> & { [P in Spending]: Only<"post", Spend<P>> } & {
  [P in Explaining]: Only<"get", Explain>;
} & {
  "/api/v1/quota/check": Only<"post", CheckPost>;
  "/api/v1/users/{user_id}/check": Only<"post", CheckPost & ForUser>;
  "/api/v1/users/{user_id}/consumptions/{consumption_id}": Only<
    "get",
    Ok<Consumption> & { parameters: { path: { user_id: string; consumption_id: string } } }
  >;
  "/api/v1/users": Only<"get", Ok<UserPage> & { parameters: { query?: UsersQuery } }>;
};
