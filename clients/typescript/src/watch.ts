/** One user's quota, kept up to date while there are subscribers; without a framework. */

import { QuotaError, QuotaExhausted, QuotaProblem, QuotaUnreachable } from "./client.js";
import { later } from "./connection.js";
import type { ConsumeRequest, Keyed, Quota, QuotaClient, Spent } from "./client.js";

export interface Standing {
  quota: Quota | null;
  /** The error of the latest `consume` or `refetch`. */
  error: QuotaError | null;
  /** True while a spend waits for its response. */
  isSpending: boolean;
}

const FIRST_PAUSE = 500; // milliseconds before a failed read is repeated; then it doubles
const LONGEST_PAUSE = 60_000;

/**
 * Read the quota for the first subscriber, when its period ends, when the page becomes visible again, when the
 * network comes back, and after a failure that may pass, with growing pauses. A hidden page reads nothing.
 *
 * One spend is made at a time. A read is shown only if no spend overlapped it: a late response never replaces a
 * newer one.
 */
export function watchQuota(client: Pick<QuotaClient, "quota" | "consume">) {
  const listeners = new Set<() => void>();
  let state: Standing = { quota: null, error: null, isSpending: false };
  let spend: Promise<Spent> | null = null;
  let reading: Promise<void> | null = null;
  let outdated: QuotaError | null = null; // the error that the next read replaces
  let failures = 0; // reads since the last success
  let stop = () => {}; // the timer of the next read
  let begun = 0; // spends

  function set(change: Partial<Standing>): void {
    state = { ...state, ...change };
    for (const notify of listeners) notify();
  }

  function show(quota: Quota, error = state.error): void {
    set({ quota, error });
    failures = 0;
    // Use the seconds to the reset, not its date: the clock or time zone of the device may be wrong.
    readIn(Math.max(1, quota.seconds_to_reset) * 1_000);
  }

  function readIn(milliseconds: number): void {
    stop();
    if (listeners.size) stop = later(milliseconds, readIfSeen);
  }

  async function readBetweenSpends(): Promise<Quota> {
    for (;;) {
      while (spend) await spend.catch(() => {});
      const before = begun;
      const quota = await client.quota();
      if (begun === before) return quota;
    }
  }

  async function read(): Promise<void> {
    try {
      const quota = await readBetweenSpends();
      show(quota, state.error === outdated ? null : state.error);
    } catch (caught) {
      const error = known(caught);
      if (state.error === outdated) set({ error: (outdated = error) });
      if (mayPass(error)) readIn(pauseAfter(error));
    } finally {
      reading = null;
    }
  }

  function pauseAfter({ retry_after }: QuotaError): number {
    const pause = Math.min(FIRST_PAUSE * 2 ** failures, LONGEST_PAUSE);
    failures += 1;
    return (retry_after ?? 0) * 1_000 + pause * (0.5 + Math.random() / 2);
  }

  function refetch(): Promise<void> {
    set({ error: (outdated = null) });
    return (reading ??= read());
  }

  function readIfSeen(): void {
    if (globalThis.document?.visibilityState === "hidden") return;
    // What became of a spend without a response is for the app to find out, with the error's key.
    if (!state.error?.outcome_unknown) outdated = state.error;
    void (reading ??= read());
  }

  function readAnew(): void {
    failures = 0;
    readIfSeen();
  }

  /**
   * Spend; return null, with the reason in `error`, if the spend was not granted. Throws no QuotaError.
   * While another spend waits for its response, as at a double click, return null and do nothing.
   */
  async function consume(body?: ConsumeRequest, keyed?: Partial<Keyed>): Promise<Spent | null> {
    if (spend) return null;
    begun += 1;
    spend = client.consume(body, keyed);
    set({ error: (outdated = null), isSpending: true });
    try {
      const spent = await spend;
      if (spent.replayed) void (reading ??= read()); // it has the quota of an earlier time
      else show(spent.quota);
      return spent;
    } catch (error) {
      set({ error: known(error) });
      if (error instanceof QuotaExhausted || state.error?.outcome_unknown) void (reading ??= read());
      return null;
    } finally {
      spend = null;
      set({ isSpending: false });
    }
  }

  function subscribe(listener: () => void): () => void {
    if (!listeners.size) {
      globalThis.document?.addEventListener("visibilitychange", readAnew);
      globalThis.window?.addEventListener?.("online", readAnew); // React Native's window has no events
      void refetch();
    }
    listeners.add(listener);
    return () => {
      listeners.delete(listener);
      if (listeners.size) return;
      globalThis.document?.removeEventListener("visibilitychange", readAnew);
      globalThis.window?.removeEventListener?.("online", readAnew);
      stop();
    };
  }

  return { subscribe, snapshot: () => state, consume, refetch };
}

/** Whether a read may succeed later: the network or the service comes back, or Clerk has loaded. */
function mayPass(error: QuotaError): boolean {
  if (error instanceof QuotaUnreachable) return true;
  if (!(error instanceof QuotaProblem)) return false;
  return error.status >= 500 || error.status === 429 || error.code === "token_missing";
}

function known(error: unknown): QuotaError {
  if (error instanceof QuotaError) return error;
  throw error;
}
