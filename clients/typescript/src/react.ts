"use client";

import { createContext, createElement, useContext, useEffect, useMemo, useRef, useSyncExternalStore } from "react";
import type { ReactElement, ReactNode } from "react";
import { createQuotaClient, type GetToken, type Site } from "./client.js";
import { watchQuota, type Standing } from "./watch.js";

export type { Standing } from "./watch.js";
type Watch = ReturnType<typeof watchQuota>;

export interface QuotaOptions extends Pick<Site, "baseUrl"> {
  getToken: GetToken;
  /** The id of the signed-in user: with another one the state starts empty. */
  userId?: string | null | undefined;
}

export interface UseQuota extends Standing, Pick<Watch, "consume" | "refetch"> {
  /** True until there is a quota or an error. */
  isLoading: boolean;
}

const NO_OPTIONS: QuotaOptions = { baseUrl: "", getToken: async () => null };
const Provided = createContext<Watch | null>(null);

/** Share one state of the signed-in user's quota among all components below that call `useQuota()`. */
export function QuotaProvider({ children, ...options }: QuotaOptions & { children?: ReactNode }): ReactElement {
  return createElement(Provided.Provider, { value: useWatch(options) }, children);
}

/**
 * Return the signed-in user's quota, and a function to spend it: `useQuota()` below a `<QuotaProvider>`, or
 * `useQuota({ baseUrl, getToken })` in the only component that needs it.
 */
export function useQuota(options?: QuotaOptions): UseQuota {
  const provided = useContext(Provided);
  const own = useWatch(options ?? NO_OPTIONS);
  const watch = options ? own : provided;
  if (!watch) throw new Error("useQuota() needs a <QuotaProvider> above it, or the argument { baseUrl, getToken }.");
  const standing = useSyncExternalStore(watch.subscribe, watch.snapshot, watch.snapshot);
  const isLoading = !standing.quota && !standing.error;
  return { ...standing, isLoading, consume: watch.consume, refetch: watch.refetch };
}

function useWatch({ baseUrl, getToken, userId }: QuotaOptions): Watch {
  const latest = useRef(getToken);
  useEffect(() => {
    latest.current = getToken;
  });
  return useMemo(
    () => watchQuota(createQuotaClient({ baseUrl, getToken: (options) => latest.current(options) })),
    [baseUrl, userId],
  );
}
