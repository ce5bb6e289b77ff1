/** A server component: to it, the hook is a reference to code of the client, and the client is a function. */

import { createQuotaClient } from "quotasite-client";
import { useQuota } from "quotasite-client/react";
import { Left } from "./quota.jsx";

export default function Page() {
  return (
    <main>
      <Left />
      <p>{`${typeof createQuotaClient}, ${String(useQuota.$$typeof)}`}</p>
    </main>
  );
}
