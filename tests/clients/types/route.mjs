/** The route of docs/integrate.md against the service: the statuses of its answers. */

import { POST } from "./route.js";

const ask = (topic, key) => {
  const headers = { "Content-Type": "application/json", "Idempotency-Key": key };
  return POST(new Request("http://localhost/", { method: "POST", headers, body: JSON.stringify({ topic }) }));
};
const status = async (topic, key = crypto.randomUUID()) => (await ask(topic, key)).status;

const [made, failed] = [crypto.randomUUID(), crypto.randomUUID()];
const saw = [await status("lists", "short"), await status("lists", made), await status("lists", made)];
saw.push(await status("poetry", failed), await status("poetry", failed));
const rest = [];
for (let n = 0; n < 18; n += 1) rest.push(await status("lists"));
saw.push(rest, await status("lists"));
const exhausted = await ask("lists", crypto.randomUUID());
saw.push(exhausted.status, Number(exhausted.headers.get("Retry-After")) > 86_000);
console.log(JSON.stringify(saw));
