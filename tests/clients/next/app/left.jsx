"use client";

import { useQuota } from "quotasite-client/react";

export default function Left() {
  const { quota, isLoading } = useQuota({
    baseUrl: "http://127.0.0.1:9",
    getToken: async () => null,
    userId: null,
  });
  return <p>{isLoading ? "loading" : `${quota?.quota_remaining} left`}</p>;
}
