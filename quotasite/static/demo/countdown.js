/** A countdown of seconds by the monotonic clock, because the user's wall clock may be wrong. */

const SECOND = 1_000;

/** Calls `show(seconds)` every second, and `atZero()` once when nothing is left. */
export class Countdown {
  #timer;

  constructor(show, atZero, now = () => performance.now()) {
    Object.assign(this, { show, atZero, now });
  }

  start(seconds) {
    this.stop();
    // Wait at least a second: a server that keeps returning 0 must not be polled in a tight loop.
    this.endsAt = this.now() + Math.max(seconds, 1) * SECOND;
    this.#timer = setInterval(() => this.#tick(), SECOND / 4);
    this.#tick();
  }

  stop() {
    clearInterval(this.#timer);
  }

  #tick() {
    const left = Math.max(0, Math.ceil((this.endsAt - this.now()) / SECOND));
    this.show(left);
    if (left > 0) return;
    this.stop();
    this.atZero();
  }
}

/** Format with two units at most: 3 d 4 h, 24 h 05 min, 5 min 06 s, 7 s. */
export function inWords(seconds) {
  const [minutes, hours, days] = [60, 3_600, 86_400].map((unit) => Math.floor(seconds / unit));
  const two = (number) => String(number).padStart(2, "0");
  if (days > 1) return `${days} d ${hours % 24} h`;
  if (hours) return `${hours} h ${two(minutes % 60)} min`;
  if (minutes) return `${minutes} min ${two(seconds % 60)} s`;
  return `${seconds} s`;
}
