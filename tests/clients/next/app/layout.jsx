import { WithQuota } from "./quota.jsx";

export default function Layout({ children }) {
  return (
    <html lang="en">
      <body>
        <WithQuota>{children}</WithQuota>
      </body>
    </html>
  );
}
