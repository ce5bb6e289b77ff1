"use client";

import { QuotaProvider, useQuota } from "quotasite-client/react";

export function WithQuota({ children }) {
  return (
    <QuotaProvider baseUrl="http://127.0.0.1:9" getToken={async () => null} userId={null}>
      {children}
    </QuotaProvider>
  );
}

export function Left() {
  const { quota, isLoading } = useQuota();
  return <p>{isLoading ? "loading" : `${quota?.quota_remaining} left`}</p>;
}
