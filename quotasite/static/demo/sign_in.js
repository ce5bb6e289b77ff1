/**
 * Sign-in by Clerk's component or by the development form. Both call `changed` with a session,
 * `{userId, getToken({fresh}), signOut()}`, or with null; `place` is the element that shows the sign-in.
 */

export const signIns = { clerk: startClerk, development: startDevelopment };

const REMEMBERED = "quotasite.demo.user"; // for this tab, so that a reload stays signed in

async function startClerk(place, changed) {
  const { Clerk, __internal_ClerkUICtor: ClerkUI } = window;
  await Clerk.load({ ui: { ClerkUI } });
  let known = null; // neither a user id nor undefined, so the first call always counts
  Clerk.addListener(({ session }) => {
    const userId = session?.user.id;
    if (userId === known) return; // Clerk calls this for each new token too
    known = userId;
    if (!session) {
      Clerk.mountSignIn(place);
      return changed(null);
    }
    Clerk.unmountSignIn(place);
    return changed({
      userId,
      getToken: ({ fresh }) => Clerk.session?.getToken({ skipCache: fresh }) ?? null,
      signOut: () => Clerk.signOut(),
    });
  });
}

async function startDevelopment(place, changed) {
  const form = place.querySelector("form");

  function begin(userId) {
    let token = null;
    sessionStorage.setItem(REMEMBERED, userId);
    changed({
      userId,
      async getToken({ fresh }) {
        if (fresh || !token) token = await mint(userId);
        return token;
      },
      signOut() {
        sessionStorage.removeItem(REMEMBERED);
        changed(null);
      },
    });
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const chosen = event.submitter?.value || form.elements.user_id.value.trim();
    begin(chosen);
  });
  const remembered = sessionStorage.getItem(REMEMBERED);
  return remembered ? begin(remembered) : changed(null);
}

/** Fetch a session token that is valid for a minute; null if the server refuses this user. */
async function mint(userId) {
  const answer = await fetch("/demo/token", { method: "POST", body: new URLSearchParams({ user_id: userId }) });
  if (answer.status >= 500) throw new Error("no token now");
  return answer.ok ? (await answer.json()).token : null;
}
