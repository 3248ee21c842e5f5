// The key's form: shown where the service asks for a key, hidden when it takes the one that is given.
import { key } from "./api.js";
import { complain, say } from "./say.js";

/** Calls start() now and after each key that is entered, until it goes through. start throws Refused. */
export async function withKey(start) {
  const entry = document.getElementById("key-form");
  const field = document.getElementById("key");
  const attempt = async () => {
    try {
      await start();
      entry.hidden = true;
    } catch (error) {
      const wrong = error.status === 401 || error.status === 403;
      const entered = key.get() !== null;
      if (error.status === 401) key.forget();
      entry.hidden = !wrong;
      if (wrong && !entered) say("This service asks for a key.");
      else complain(error.message);
      if (wrong) field.focus();
    }
  };
  entry.addEventListener("submit", (event) => {
    event.preventDefault();
    key.set(field.value.trim());
    field.value = "";
    attempt();
  });
  await attempt();
}
