// The settings: what the models take, and what is chosen.
import { mistake } from "./latest.js";
import { make } from "./say.js";

const at = (id) => document.getElementById(id);
let models = [];

export const all = () => models;
export const model = () => models.find((each) => each.id === at("model").value) ?? models[0];
export const channels = () => model().shape[0];
export const height = () => model().shape[1];
export const width = () => model().shape[2];

/** Fill the form in for these models. */
export function show(list) {
  models = list.map((each) => ({
    ...each,
    jumps: each.samplers.includes("gamma"),
    fields: Object.entries(each.conditions).map(([name, shape]) => ({ name, shape })),
  }));
  at("model").replaceChildren(...list.map((each) => make("option", { value: each.id }, each.id)));
  fit();
}

/** Show the controls that the chosen model has. */
export function fit() {
  const one = model();
  const [depth, high, wide] = one.shape;
  const kind = one.jumps ? "jumps, so one step is enough" : "denoises step by step, so give it 18 steps or so";
  at("model-hint").textContent = `${wide}×${high}, ${depth === 1 ? "grey" : "colour"}; it ${kind}.`;
  const names = Array.from({ length: one.classes }, (_, index) => one.class_names[index] ?? String(index));
  at("class-field").hidden = names.length === 0;
  const chosen = at("class").value;
  at("class").replaceChildren(
    make("option", { value: "" }, "Any"),
    ...names.map((name, index) => make("option", { value: String(index) }, name)),
  );
  at("class").value = [...at("class").options].some((option) => option.value === chosen) ? chosen : "";
  at("conditions-field").hidden = one.fields.length === 0;
  const fields = one.fields.map(({ name, shape }) => `${name} (${shape.join("×") || "a number"})`);
  at("conditions-hint").textContent = `As JSON, e.g. {"${one.fields[0]?.name ?? "name"}": […]}. It takes ${fields.join(", ")}.`;
  at("gamma-field").hidden = !one.jumps;
  at("guidance-field").hidden = !one.guidance;
  if (!one.jumps && Number(at("steps").value) < 2) at("steps").value = 18;
  at("steps").min = one.jumps ? 1 : 2;
  numbers();
}

/** Show the sliders' numbers. */
export function numbers() {
  at("steps-value").textContent = at("steps").value;
  at("gamma-value").textContent = at("gamma").value;
}

export const locked = () => at("lock").checked;

export function seed() {
  const text = at("seed").value.trim();
  if (!/^\d{1,10}$/.test(text) || Number(text) > 4294967295) {
    at("seed").focus();
    throw mistake(`A seed is a whole number from 0 to 4294967295, and this is "${text}".`);
  }
  return Number(text);
}

export function freshSeed() {
  at("seed").value = String(crypto.getRandomValues(new Uint32Array(1))[0]);
}

function conditions(one) {
  const text = at("conditions").value.trim();
  if (!one.fields.length || !text) return null;
  try {
    return JSON.parse(text);
  } catch {
    at("conditions").focus();
    throw mistake("The conditions are no JSON: write them as {\"name\": [1, 2, 3]}.");
  }
}

/** What a request says of the chosen class and the conditions. */
export function wish() {
  const one = model();
  const condition = conditions(one);
  return { prompt: at("class").value, ...(condition ? { condition } : {}) };
}

/** How the chosen model is to make pictures. */
export function method() {
  const one = model();
  const chosen = { model: one.id, steps: Number(at("steps").value) };
  if (one.jumps) chosen.gamma = Number(at("gamma").value);
  if (one.guidance && Number(at("guidance").value) !== 1) chosen.guidance = Number(at("guidance").value);
  return chosen;
}
