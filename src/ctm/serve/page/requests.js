// What the page asks the service for. Each returns the pictures that came.
import { Refused, form, json } from "./api.js";
import { mistake } from "./latest.js";
import * as settings from "./settings.js";

/** The pictures of an answer, and those that were withheld: held for a moderator, or blocked. */
async function pictures(answer) {
  try {
    const { data, withheld = [] } = await answer;
    return [...data, ...withheld];
  } catch (error) {
    if (error instanceof Refused && error.pictures.length) return error.pictures;
    throw error;
  }
}

export async function generations(count) {
  const asked = { ...settings.method(), ...settings.wish(), n: count, seed: settings.seed(), response_format: "b64_json" };
  return pictures(json("v1/images/generations", { body: asked }));
}

/** One picture of each model and each γ; a model that does not jump has none. */
export async function compare(names, gammas) {
  const { steps, guidance } = settings.method();
  const variants = names.flatMap((name) => {
    const one = settings.all().find((each) => each.id === name);
    if (!one.jumps) return [{ model: name, steps: Math.max(steps, 18) }];
    return gammas.map((gamma) => ({ model: name, steps, gamma, ...(guidance && one.guidance ? { guidance } : {}) }));
  });
  return pictures(json("v1/ctm/compare", { body: { variants, ...settings.wish(), seed: settings.seed() } }));
}

export async function path(guesses) {
  const asked = { ...settings.method(), ...settings.wish(), seed: settings.seed(), guesses };
  return pictures(json("v1/ctm/path", { body: asked }));
}

export async function inpaint(picture, mask) {
  const fields = { ...wish(), seed: settings.seed(), image: picture, mask, response_format: "b64_json" };
  return pictures(json("v1/images/edits", { body: form(fields) }));
}

export async function stroke(picture, sigma) {
  const fields = { ...settings.method(), ...wish(), seed: settings.seed(), image: picture, sigma };
  return pictures(json("v1/ctm/stroke", { body: form(fields) }));
}

export async function variations(picture, count) {
  const fields = { ...wish(), seed: settings.seed(), n: count, image: picture, response_format: "b64_json" };
  return pictures(json("v1/images/variations", { body: form(fields) }));
}

export async function interpolate(first, second, count) {
  return pictures(json("v1/ctm/interpolate", { body: form({ ...wish(), first, second, n: count }) }));
}

export async function likelihood(picture) {
  return json("v1/ctm/likelihood", { body: form({ ...wish(), seed: settings.seed(), image: picture }) });
}

/** The model and what is wished of it, without the way it makes pictures. */
function wish() {
  return { model: settings.model().id, ...settings.wish() };
}

/** Numbers in [0, 1] with commas between. */
export function numbers(text) {
  const found = text.split(",").map((each) => each.trim()).filter((each) => each !== "");
  const wrong = found.find((each) => !(Number(each) >= 0 && Number(each) <= 1));
  if (wrong !== undefined || found.length === 0 || found.length > 8) {
    throw mistake(`Give one to eight values of γ from 0 to 1, with commas between them: "${text}" has ${wrong ?? "too few or too many"}.`);
  }
  return found.map(Number);
}
