// One request at a time: while it runs, only the latest of those that came is remembered.
import { Refused } from "./api.js";
import { complain } from "./say.js";

let running = false;
let next = null;

function mark(busy) {
  document.getElementById("work").setAttribute("aria-busy", String(busy));
  for (const button of document.querySelectorAll("button.primary")) {
    if (busy) button.setAttribute("aria-disabled", "true");
    else button.removeAttribute("aria-disabled");
  }
}

/** Run the task now, or after the one that runs, unless a later one comes. Its errors become sentences. */
export async function latest(task) {
  next = task;
  if (running) return;
  running = true;
  mark(true);
  while (next) {
    const now = next;
    next = null;
    try {
      await now();
    } catch (error) {
      complain(error instanceof Refused || error.sentence ? error.message : `The page failed: ${error.message}.`);
    }
  }
  running = false;
  mark(false);
}

/** An error that is the user's to mend. */
export function mistake(message) {
  return Object.assign(new Error(message), { sentence: true });
}
