// Have Clerk's own JavaScript sign and verify what standard input asks for, and print the outcome as JSON.
// Run it beside an installed npm package @clerk/backend: node clerk_backend.mjs < request.json
//   sign:       [{header, claims}] with {privateKey}  -> the tokens; iat is always now
//   tokens:     [token] with {options}                -> null for each that verifyToken accepts, or the reason
//   deliveries: [{headers, body}] with {secret}       -> the same, by verifyWebhook
import { readFileSync } from "node:fs";
import { verifyToken } from "@clerk/backend";
import { signJwt } from "@clerk/backend/jwt";
import { verifyWebhook } from "@clerk/backend/webhooks";

const { sign = [], privateKey, tokens = [], options, deliveries = [], secret } = JSON.parse(readFileSync(0, "utf8"));

const reasonOf = (verifying) => verifying.then(() => null, (error) => error.reason ?? String(error));
const all = async (items, answer) => {
  const answers = [];
  for (const item of items) answers.push(await answer(item));
  return answers;
};
const answers = {
  signed: await all(sign, ({ header, claims }) => signJwt(claims, privateKey, { algorithm: "RS256", header })),
  tokens: await all(tokens, (token) => reasonOf(verifyToken(token, options))),
  deliveries: await all(deliveries, ({ headers, body }) => {
    const request = new Request("https://api.example.com/webhooks/clerk", { method: "POST", headers, body });
    return reasonOf(verifyWebhook(request, { signingSecret: secret }));
  }),
};
process.stdout.write(JSON.stringify(answers));
