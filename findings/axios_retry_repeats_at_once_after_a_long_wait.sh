#!/usr/bin/env bash
# The good guess: a client that honours Retry-After waits at least that long, or gives up at once.
# What happens: with a Retry-After of 30 days axios-retry repeats the request within a few milliseconds, as often as it
#   may: the wait exceeds the 32 bits of a timer (2,147,483,647 ms, 24.8 days), and such a timer ends after 1 ms.
# Versions: axios-retry==4.5.0 with axios==1.21.1 on node 20; a Retry-After of one second is waited for.
# Why it matters: a quota by the month is refused with the seconds until its reset, which may be 31 days. The retries
#   then hit the service at once, and each counts as a refused request. A service cannot shorten the time without a lie.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
echo '{"type": "module"}' > package.json
npm install --silent --no-audit --no-fund --ignore-scripts axios@1.21.1 axios-retry@4.5.0 > /dev/null
cat > show.mjs <<'JAVASCRIPT'
import { createServer } from "node:http";
import { readFileSync } from "node:fs";
import axios from "axios";
import axiosRetry, { retryAfter } from "axios-retry";

const version = (name) => JSON.parse(readFileSync(`node_modules/${name}/package.json`, "utf8")).version;
console.log(`axios-retry ${version("axios-retry")}, axios ${version("axios")}, node ${process.version}`);
process.removeAllListeners("warning");
process.on("warning", (warning) => console.log(`  node warns: ${warning.name}`));

let asked = 0, seconds = 0;
const server = createServer((request, response) => {
  asked += 1;
  response.writeHead(429, { "Retry-After": String(seconds) }).end();
});
await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
const client = axios.create({ baseURL: `http://127.0.0.1:${server.address().port}` });
axiosRetry(client, { retries: 2, retryCondition: () => true, retryDelay: (count, error) => retryAfter(error) });

async function ask(wait) {
  [asked, seconds] = [0, wait];
  const began = performance.now();
  await client.get("/").catch(() => undefined);
  const took = performance.now() - began;
  console.log(`Retry-After: ${wait} → ${asked} requests in ${took < 1000 ? "under a second" : `${Math.floor(took / 1000)} s`}`);
  return [asked, took];
}

const [, short] = await ask(1);
const [requests, long] = await ask(30 * 24 * 3600);
server.close();
if (!(short >= 2000 && requests === 3 && long < 1000)) {
  console.error("This is no longer what happens.");
  process.exit(1);
}
JAVASCRIPT
node show.mjs
