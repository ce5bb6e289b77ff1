/** The running service that the tests use, and a proxy in front of it that loses responses. */

import { createServer, request } from "node:http";

export const SITE = process.env.QUOTASITE_URL;
export const serviceKey = process.env.SERVICE_KEY;
let users = 0;

/** Return the id of a user that the service does not know yet. */
export const newUser = () => `user_${process.pid}_${(users += 1)}`;

/** Return a session token like Clerk's, with other `claims`; times are in seconds from now. */
export async function mint(user, claims = {}) {
  const query = new URLSearchParams({ sub: user, ...claims });
  return (await fetch(`${process.env.TOKENS_URL}?${query}`)).text();
}

/** Return a getToken like Clerk's, which caches the token; `asked` records the `skipCache` of each call. */
export function signedIn(user, first) {
  let token = first;
  const asked = [];
  const getToken = async (options = {}) => {
    asked.push(options.skipCache ?? false);
    if (!token || options.skipCache) token = mint(user);
    return token;
  };
  return { getToken, asked };
}

/** Start a proxy that applies one fault to each request in order; "cut" loses the response of the service. */
export async function proxy(test, faults = [], port = 0) {
  const seen = [];
  const server = createServer((incoming, answer) => {
    const fault = faults[seen.length];
    seen.push({ method: incoming.method, key: incoming.headers["idempotency-key"], at: performance.now() });
    if (fault === "hang") return;
    if (typeof fault === "object") {
      answer.writeHead(fault.status, fault.headers).end(fault.body);
      return;
    }
    const outgoing = request(SITE + incoming.url, { method: incoming.method, headers: incoming.headers });
    outgoing.on("response", (response) => {
      if (fault === "cut") {
        response.resume().on("end", () => answer.destroy());
        return;
      }
      answer.writeHead(response.statusCode, response.headers);
      response.pipe(answer);
    });
    incoming.pipe(outgoing);
  });
  await new Promise((resolve) => server.listen(port, "127.0.0.1", resolve));
  test.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return { baseUrl: `http://127.0.0.1:${server.address().port}`, seen, port: server.address().port };
}

/** The response of the service while its database is unavailable. */
export const unavailable = (retryAfter) => ({
  status: 503,
  headers: { "Content-Type": "application/problem+json", "Retry-After": String(retryAfter) },
  body: JSON.stringify({
    type: "about:blank",
    title: "Service Unavailable",
    status: 503,
    code: "database_unavailable",
    detail: "The database is unavailable: try again.",
  }),
});
