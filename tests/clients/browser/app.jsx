/** A page with the provider under StrictMode, read by two components. Its address has the service's and a session token. */

import { StrictMode, useState } from "react";
import { createRoot } from "react-dom/client";
import { createQuotaClient } from "quotasite-client";
import { QuotaProvider, useQuota } from "quotasite-client/react";

const { baseUrl, token } = Object.fromEntries(new URLSearchParams(location.search));
const getToken = async () => token;

window.sent = []; // the method of each request
const real = window.fetch.bind(window);
window.fetch = (url, request) => {
  window.sent.push(request.method);
  return real(url, request);
};
window.readAt = (address) =>
  createQuotaClient({ baseUrl: address, getToken }).quota().catch(({ name, message }) => `${name}: ${message}`);

function Badge() {
  const { quota, isSpending } = useQuota();
  return <b>{`${quota?.quota_remaining ?? "?"} left${isSpending ? ", spending" : ""}`}</b>;
}

function Left() {
  const { quota, error, isLoading, consume } = useQuota();
  const again = error?.outcome_unknown ? error.key : undefined;
  return (
    <>
      <output>{isLoading ? "loading" : `${quota?.quota_remaining ?? "?"} left`}</output>
      <p role="alert">{error?.message}</p>
      <button id="spend" onClick={() => consume({ cost: 1 }, again ? { key: again } : {})}>
        Spend
      </button>
    </>
  );
}

function App() {
  const [isShown, show] = useState(false);
  if (!isShown) return <button id="show" onClick={() => show(true)}>Show</button>;
  return (
    <QuotaProvider baseUrl={baseUrl} getToken={getToken}>
      <Badge />
      <Left />
    </QuotaProvider>
  );
}

createRoot(document.getElementById("root")).render(<StrictMode><App /></StrictMode>);
