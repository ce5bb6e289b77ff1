/** One user's quota, kept up to date while there are subscribers; without a framework. */

import { QuotaError, QuotaExhausted } from "./client.js";
import type { ConsumeRequest, Consumption, Keyed, Quota, QuotaClient } from "./client.js";

export interface Standing {
  quota: Quota | null;
  /** The error of the latest `consume` or `refetch`. */
  error: QuotaError | null;
}

const MAX_TIMER = 2 ** 31 - 1; // milliseconds; setTimeout would fire a longer one at once

/**
 * Read the quota for the first subscriber, when its period ends, and when the page becomes visible again.
 *
 * A read is shown only if no spend overlapped it, and of two spends the later in the ledger is shown: a late
 * response never replaces a newer one.
 */
export function watchQuota(client: Pick<QuotaClient, "quota" | "consume">) {
  const listeners = new Set<() => void>();
  const spends = new Set<Promise<Consumption>>();
  let state: Standing = { quota: null, error: null };
  let reading: Promise<void> | null = null;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let begun = 0; // spends
  let newest = 0; // seq of the last spend that is shown

  function set(change: Partial<Standing>): void {
    state = { ...state, ...change };
    for (const notify of listeners) notify();
  }

  function show(quota: Quota): void {
    set({ quota });
    clearTimeout(timer);
    // Use the seconds to the reset, not its date: the clock or time zone of the device may be wrong.
    const rest = Math.max(1, quota.seconds_to_reset) * 1_000;
    if (listeners.size) timer = setTimeout(readIfSeen, Math.min(rest, MAX_TIMER));
  }

  async function readBetweenSpends(): Promise<Quota> {
    for (;;) {
      while (spends.size) await Promise.allSettled(spends);
      const before = begun;
      const quota = await client.quota();
      if (begun === before) return quota;
    }
  }

  async function read(): Promise<void> {
    try {
      show(await readBetweenSpends());
    } catch (error) {
      set({ error: known(error) });
    } finally {
      reading = null;
    }
  }

  function refetch(): Promise<void> {
    set({ error: null });
    return (reading ??= read());
  }

  function readIfSeen(): void {
    if (globalThis.document?.visibilityState !== "hidden") void refetch();
  }

  /** Spend; return null, with the reason in `error`, if the spend was not granted. Throws no QuotaError. */
  async function consume(body?: ConsumeRequest, keyed?: Partial<Keyed>): Promise<Consumption | null> {
    begun += 1;
    set({ error: null });
    const spend = client.consume(body, keyed);
    spends.add(spend);
    try {
      const consumption = await spend;
      if (keyed?.key) {
        void (reading ??= read()); // the response may be a replay, with the quota of an earlier time
      } else if (consumption.seq > newest) {
        newest = consumption.seq;
        show(consumption.quota);
      }
      return consumption;
    } catch (error) {
      set({ error: known(error) });
      if (error instanceof QuotaExhausted) void (reading ??= read());
      return null;
    } finally {
      spends.delete(spend);
    }
  }

  function subscribe(listener: () => void): () => void {
    if (!listeners.size) {
      globalThis.document?.addEventListener("visibilitychange", readIfSeen);
      void refetch();
    }
    listeners.add(listener);
    return () => {
      listeners.delete(listener);
      if (listeners.size) return;
      globalThis.document?.removeEventListener("visibilitychange", readIfSeen);
      clearTimeout(timer);
    };
  }

  return { subscribe, snapshot: () => state, consume, refetch };
}

function known(error: unknown): QuotaError {
  if (error instanceof QuotaError) return error;
  throw error;
}
