"use client";

import { useEffect, useMemo, useRef, useSyncExternalStore } from "react";
import { createQuotaClient, type GetToken, type Site } from "./client.js";
import { watchQuota, type Standing } from "./watch.js";

export type { Standing } from "./watch.js";
type Watch = ReturnType<typeof watchQuota>;

export interface UseQuota extends Standing, Pick<Watch, "consume" | "refetch"> {
  /** True until there is a quota or an error. */
  isLoading: boolean;
}

/**
 * Return the signed-in user's quota, and a function to spend it; with another `userId` the state starts empty.
 *
 * Use the hook once and pass its result down: a second use would see the spends of the first only after its
 * own next read.
 */
export function useQuota({
  getToken,
  baseUrl,
  userId,
}: Pick<Site, "baseUrl"> & { getToken: GetToken; userId?: string | null | undefined }): UseQuota {
  const latest = useRef(getToken);
  useEffect(() => {
    latest.current = getToken;
  });
  const watch = useMemo(
    () => watchQuota(createQuotaClient({ baseUrl, getToken: (options) => latest.current(options) })),
    [baseUrl, userId],
  );
  const standing = useSyncExternalStore(watch.subscribe, watch.snapshot, watch.snapshot);
  const isLoading = !standing.quota && !standing.error;
  return { ...standing, isLoading, consume: watch.consume, refetch: watch.refetch };
}
