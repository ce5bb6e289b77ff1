/** A Cloudflare Worker that uses the client, and responds with what it saw. */

import { createQuotaClient, QuotaExhausted, QuotaUnreachable } from "./client.js";

export default {
  async fetch(_, { SITE, MOVED, TOKEN }) {
    const getToken = async () => TOKEN;
    const client = createQuotaClient({ baseUrl: SITE, getToken });
    const read = (await client.quota()).quota_remaining;
    const spent = (await client.consume({ cost: 2 })).quota.quota_remaining;

    const keys = [];
    const lossy = async (url, request) => {
      keys.push(request.headers["Idempotency-Key"]);
      const response = await fetch(url, request);
      if (keys.length > 1) return response;
      await response.text();
      throw new TypeError("Network connection lost.");
    };
    const again = await createQuotaClient({ baseUrl: SITE, getToken, fetch: lossy }).consume({ cost: 3 });

    const exhausted = await client.consume({ cost: 20 }).catch((error) => error);
    const moved = await createQuotaClient({ baseUrl: MOVED, getToken }).quota().catch((error) => error);
    return Response.json({
      read,
      spent,
      again: [again.quota.quota_remaining, keys.length, new Set(keys).size],
      exhausted: [exhausted instanceof QuotaExhausted, exhausted.quota_remaining, exhausted.retry_after > 0],
      moved: [moved instanceof QuotaUnreachable, moved.message],
    });
  },
};
