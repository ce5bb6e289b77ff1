/** The running service that the tests are given, and a proxy in front of it that loses answers. */

import { createServer, request } from "node:http";

export const SITE = process.env.QUOTASITE_URL;
export const serviceKey = process.env.SERVICE_KEY;
let users = 0;

/** A user whom the service has not met. */
export const newUser = () => `user_${process.pid}_${(users += 1)}`;

/** A session token as Clerk signs it, but for the claims that are given as seconds from now. */
export async function mint(user, claims = {}) {
  const query = new URLSearchParams({ sub: user, ...claims });
  return (await fetch(`${process.env.TOKENS_URL}?${query}`)).text();
}

/** Clerk's getToken: a token is kept until another is asked for; `asked` tells how that was done. */
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

/** What became of requests, in order: "cut" is after the service carried it out. */
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

/** An answer of the service when its database is away. */
export const unavailable = (retryAfter) => ({
  status: 503,
  headers: { "Content-Type": "application/problem+json", "Retry-After": String(retryAfter) },
  body: JSON.stringify({
    type: "about:blank",
    title: "Service Unavailable",
    status: 503,
    code: "database_unavailable",
    detail: "The database cannot be used for now; nothing was lost. Try again, with the same key.",
  }),
});
