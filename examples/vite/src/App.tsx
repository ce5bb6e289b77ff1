import { useRef, useState } from "react";
import { SignInButton, useAuth } from "@clerk/react";
import { nextReset } from "quotasite-client";
import { QuotaProvider, useQuota } from "quotasite-client/react";

export function App() {
  const { getToken, isSignedIn, userId } = useAuth();
  if (!isSignedIn) return <SignInButton />;
  return (
    <QuotaProvider baseUrl={import.meta.env.VITE_QUOTASITE_URL} getToken={getToken} userId={userId}>
      <Left />
      <Challenge />
    </QuotaProvider>
  );
}

function Left() {
  const { quota, error } = useQuota();
  if (error) return <p role="alert">{error.message}</p>;
  if (!quota) return <p>…</p>;
  return <p id="left">{`${quota.quota_remaining} left, more ${nextReset(quota).text}`}</p>;
}

function Challenge() {
  const { getToken } = useAuth();
  const { refetch } = useQuota();
  const attempt = useRef<string>(crypto.randomUUID());
  const [text, setText] = useState("");
  const [isWorking, setIsWorking] = useState(false);

  async function create() {
    setIsWorking(true);
    try {
      const response = await fetch("/api/challenges", {
        method: "POST",
        headers: {
          Authorization: `Bearer ${await getToken()}`,
          "Content-Type": "application/json",
          "Idempotency-Key": attempt.current,
        },
        body: JSON.stringify({ topic: "lists" }),
      });
      const { task, detail, code } = await response.json().catch(() => ({}));
      // Decided, so the next click is a new attempt; not so while the work is under way, or if nobody knows.
      if (detail !== undefined ? response.status !== 503 && code !== "already_spent" : task)
        attempt.current = crypto.randomUUID();
      setText(task ?? (typeof detail === "string" ? detail : "That failed: try again."));
    } catch {
      setText("No answer came. Try again: with the same key it is paid for once.");
    }
    setIsWorking(false);
    refetch();
  }

  return (
    <>
      <button disabled={isWorking} onClick={create}>New challenge</button>
      <output>{text}</output>
    </>
  );
}
