/** The README's example for servers against the service: which attempts are worked for, and what is left. */

import { createServiceClient } from "quotasite-client";
import { generate } from "./server.js";

const { SITE, SERVICE_KEY, USER_ID } = process.env;
const real = globalThis.fetch;
globalThis.fetch = (url, request) => real(url.replace("https://quota.example.com", SITE), request);

let done = 0;
const works = async () => `work ${(done += 1)}`;
const fails = async () => {
  throw new Error("no model");
};
const attempt = (id, work) => generate(USER_ID, id, work).catch(({ message }) => message);

const saw = [];
saw.push(await attempt("a", works), await attempt("a", works)); // made, repeated
saw.push(await attempt("b", fails), await attempt("b", works)); // failed and refunded, repeated
saw.push(await attempt("c", works));
const { quota_remaining } = await createServiceClient({ baseUrl: SITE, serviceKey: SERVICE_KEY }).quota(USER_ID);
console.log(JSON.stringify([saw, done, quota_remaining]));
