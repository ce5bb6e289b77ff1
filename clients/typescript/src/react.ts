import { useEffect, useMemo, useRef, useSyncExternalStore } from "react";
import { createQuotaClient, type GetToken, type Site } from "./client.js";
import { watchQuota, type Standing } from "./watch.js";

export type { Standing } from "./watch.js";
type Watch = ReturnType<typeof watchQuota>;

export interface UseQuota extends Standing, Pick<Watch, "consume" | "refetch"> {
  /** Nothing is known yet. */
  isLoading: boolean;
}

/**
 * The signed-in user's quota, and how to spend it; `userId` starts it anew when another user signs in.
 *
 * Use it once and hand the result down: two uses are two readers, of which one sees the spends of the
 * other only with its next read.
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
  const { quota, error } = useSyncExternalStore(watch.subscribe, watch.snapshot, watch.snapshot);
  return { quota, error, isLoading: !quota && !error, consume: watch.consume, refetch: watch.refetch };
}
