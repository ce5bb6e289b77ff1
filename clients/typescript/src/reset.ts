/** When a quota resets, in words for the user. */

export interface NextReset {
  date: Date;
  /** The day and the minute in the user's language and time zone, such as "tomorrow at 10:52". */
  text: string;
}

const MINUTE = 60_000; // milliseconds
const DAY = 24 * 60 * MINUTE;

/** Take a quota, a check or a QuotaExhausted. The text rounds up to a minute, so that it never names one too early. */
export function nextReset(
  { resets_at }: { resets_at: string },
  { locale, now = new Date() }: { locale?: string; now?: Date } = {},
): NextReset {
  const date = new Date(resets_at);
  const minute = new Date(Math.ceil(date.getTime() / MINUTE) * MINUTE);
  const day = new Intl.DateTimeFormat(locale, { dateStyle: "full" }).format(minute);
  const text = new Intl.DateTimeFormat(locale, { dateStyle: "full", timeStyle: "short" }).format(minute);
  return { date, text: text.replace(day, wordFor(daysBetween(now, minute), locale) ?? day) };
}

/** Return the word for today or tomorrow. React Native's Hermes has no RelativeTimeFormat. */
function wordFor(days: number, locale?: string): string | undefined {
  if (days < 0 || days > 1 || !Intl.RelativeTimeFormat) return undefined;
  return new Intl.RelativeTimeFormat(locale, { numeric: "auto" }).format(days, "day");
}

/** Count midnights of the user's time zone, where days have 23 to 25 hours. */
function daysBetween(now: Date, then: Date): number {
  const midnight = (date: Date) => new Date(date.getFullYear(), date.getMonth(), date.getDate()).getTime();
  return Math.round((midnight(then) - midnight(now)) / DAY);
}
