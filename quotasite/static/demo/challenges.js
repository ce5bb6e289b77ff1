/** What a unit of the quota buys in this demo: one small challenge. */

const CHALLENGES = [
  "Reverse a linked list without a second one.",
  "Find the one number that is missing from 1 to 100.",
  "Decide in one pass whether two words are anagrams.",
  "Merge two sorted lists into one.",
  "Count the islands on a map of land and sea.",
  "Turn a Roman numeral into a number.",
  "Find the longest palindrome in a text.",
  "Give change for 87 cents with the fewest coins.",
];

export function challenge() {
  return CHALLENGES[Math.floor(Math.random() * CHALLENGES.length)];
}
