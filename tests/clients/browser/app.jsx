/** A page with the hook under StrictMode. Its address has the service's and a session token. */

import { StrictMode, useState } from "react";
import { createRoot } from "react-dom/client";
import { createQuotaClient } from "quotasite-client";
import { useQuota } from "quotasite-client/react";

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

function Left() {
  const { quota, error, isLoading, isSpending, consume } = useQuota({ baseUrl, getToken });
  const again = error?.outcome_unknown ? error.key : undefined;
  return (
    <>
      <output>{isLoading ? "loading" : `${quota?.quota_remaining ?? "?"} left`}</output>
      <b>{`${quota?.quota_remaining ?? "?"} left${isSpending ? ", spending" : ""}`}</b>
      <p role="alert">{error?.message}</p>
      <button id="spend" onClick={() => consume({ cost: 1 }, again ? { key: again } : {})}>
        Spend
      </button>
    </>
  );
}

function App() {
  const [isShown, show] = useState(false);
  return isShown ? <Left /> : <button id="show" onClick={() => show(true)}>Show</button>;
}

createRoot(document.getElementById("root")).render(<StrictMode><App /></StrictMode>);
