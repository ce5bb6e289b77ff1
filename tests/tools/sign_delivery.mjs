// Sign one delivery with Svix's own JavaScript, and print it as JSON: {secret, headers, body}.
// Run it beside an installed npm package svix: node sign_delivery.mjs SECRET UNIX_SECONDS < body
import { readFileSync } from "node:fs";
import { Webhook } from "svix";

const [secret, seconds] = process.argv.slice(2);
const body = readFileSync(0, "utf8");
const id = "msg_signedByJavaScript";
const headers = {
  "svix-id": id,
  "svix-timestamp": seconds,
  "svix-signature": new Webhook(secret).sign(id, new Date(seconds * 1000), body),
};
process.stdout.write(JSON.stringify({ secret, headers, body }, null, 2) + "\n");
