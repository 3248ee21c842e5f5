// The page: its controls, and what each of them does.
import { json } from "./api.js";
import { Board } from "./board.js";
import { withKey } from "./key.js";
import { latest, mistake } from "./latest.js";
import { fill } from "./picture.js";
import * as requests from "./requests.js";
import { make, say } from "./say.js";
import * as settings from "./settings.js";
import { tabs } from "./tabs.js";

const at = (id) => document.getElementById(id);
const board = new Board(at("board"), at("board-place"));
const ends = { first: null, second: null };
let tab = "tab-make";

function described(items) {
  const kept = items.filter((item) => !item.b64_json).length;
  const came = items.length - kept;
  const said = came === 1 ? "One picture came." : `${came} pictures came.`;
  return kept ? `${came ? said : ""} ${kept === 1 ? "One picture" : `${kept} pictures`} may not leave yet, or not at all.`.trim() : said;
}

const draw = (blob) => toBoard(blob);
const number = (id, low, high) => {
  const value = Number(at(id).value);
  if (!Number.isInteger(value) || value < low || value > high) {
    at(id).focus();
    throw mistake(`Give a whole number from ${low} to ${high} for ${at(id).labels[0].textContent.toLowerCase()}.`);
  }
  return value;
};

async function timed(work, container, options = {}) {
  say("Working …");
  const start = performance.now();
  const items = await work();
  fill(container, items, { draw, ...options });
  const spent = Math.round(performance.now() - start);
  say(`${described(items)} It took ${spent} ms.`);
  return spent;
}

const classOf = () => (at("class").value === "" ? "any class" : at("class").selectedOptions[0].text);
const seedOf = (item) => `seed ${item.claim.seed}`;

async function makePictures() {
  const count = number("count", 1, 16);
  const label = (item, index) => `Picture ${index + 1} of ${count}: ${classOf()}, ${seedOf(item)}`;
  const spent = await timed(() => requests.generations(count), at("made"), { label });
  at("make-time").textContent = `${spent} ms`;
}

async function comparePictures() {
  const names = [...document.querySelectorAll("#compare-models input:checked")].map((box) => box.value);
  if (!names.length) throw mistake("Choose at least one model to compare.");
  const gammas = requests.numbers(at("gammas").value);
  const label = ({ claim }) => [claim.model, `${claim.steps} ${claim.steps === 1 ? "step" : "steps"}`, ...(claim.sampler !== "gamma" ? [] : [`γ\u00a0=\u00a0${claim.gamma}`])].join(", ");
  const one = settings.method().steps === 1 && gammas.length > 1;
  await timed(() => requests.compare(names, one ? gammas.slice(0, 1) : gammas), at("compared"), { label });
  if (one) say(`${at("status").textContent} With one step γ changes nothing, so there is one picture for all its values.`);
}

async function showPath() {
  if (!settings.model().jumps) throw mistake("This model does not jump, so it has no path of jumps: choose another model.");
  say("Working …");
  const items = await requests.path(at("guesses").checked);
  const level = (value) => Number(value.toPrecision(2)).toString();
  for (const [kind, id] of [["state", "states"], ["guess", "guessed"]]) {
    const mine = items.filter((item) => (item.claim?.shows ?? "state") === kind);
    at(`${id === "states" ? "states" : "guesses"}-title`).hidden = mine.length === 0;
    const label = ({ claim }) => `Jump ${claim.step + 1}: σ\u00a0${level(claim.from)} → ${level(claim.to)}`;
    fill(at(id), mine, { draw, label });
  }
  say(described(items));
}

async function toBoard(blob) {
  const bitmap = await createImageBitmap(blob).catch(() => {
    throw mistake("This file is no picture that the browser can read: give a PNG, JPEG or WebP.");
  });
  board.put(bitmap, settings.channels() === 1);
  say("The picture is on the drawing board, in Edit.");
}

async function inpaint() {
  if (!board.marked) throw mistake("Mark the part to fill in first: choose \"Mark what to fill in\" and paint over it.");
  const [picture, mask] = [await board.picture(), await board.mask()];
  await timed(() => requests.inpaint(picture, mask), at("edited"), { label: (item) => `Filled in, ${seedOf(item)}` });
}

async function stroke() {
  if (!settings.model().jumps) throw mistake("Stroke to image needs a model that jumps: choose another model.");
  const picture = await board.picture();
  const label = (item) => `From strokes, ${seedOf(item)}`;
  await timed(() => requests.stroke(picture, sigma()), at("edited"), { label });
}

async function vary() {
  const picture = await board.picture();
  const label = (item, index) => `Variation ${index + 1}, ${seedOf(item)}`;
  await timed(() => requests.variations(picture, 4), at("edited"), { label });
}

async function likelihood() {
  say("Working …");
  const found = await requests.likelihood(await board.picture());
  const spread = found.standard_error ? ` ± ${found.standard_error.toFixed(3)}` : "";
  const text = `${found.bits_per_dim.toFixed(3)}${spread} bits per dimension under ${settings.model().id}. Fewer bits mean a likelier picture.`;
  at("bits").textContent = text;
  say(text);
}

/** σ of stroke to image: the slider is even in its logarithm. */
function sigma() {
  const { sigma_min: low, sigma_max: high } = settings.model();
  const floor = Math.max(low * 1.01, 0.02);
  return Number((floor * (high / floor) ** (Number(at("level").value) / 100)).toPrecision(3));
}

async function between() {
  if (!ends.first || !ends.second) throw mistake("Give both ends first: from the drawing board, or as uploads.");
  const count = number("between-count", 2, 16);
  const label = (item, index) => `${index + 1} of ${count}`;
  await timed(() => requests.interpolate(ends.first, ends.second, count), at("on-the-way"), { label });
}

/** Take a picture as an end of an interpolation, at the model's size. */
async function takeEnd(name, blob) {
  const bitmap = await createImageBitmap(blob).catch(() => {
    throw mistake("This file is no picture that the browser can read: give a PNG, JPEG or WebP.");
  });
  const canvas = at(name);
  const small = new Board(canvas.cloneNode(), document.createElement("p"));
  small.resize(settings.width(), settings.height());
  small.put(bitmap, settings.channels() === 1);
  ends[name] = await small.picture();
  [canvas.width, canvas.height] = [settings.width(), settings.height()];
  canvas.getContext("2d").drawImage(small.small, 0, 0);
  canvas.setAttribute("aria-label", `${name === "first" ? "First" : "Second"} picture: chosen`);
  say("The picture is taken.");
}

function brush() {
  const tool = document.querySelector("input[name=tool]:checked").value;
  const grey = Number(at("grey").value);
  const hex = at("colour").value;
  const colour = settings.channels() === 1 ? [grey, grey, grey] : [1, 3, 5].map((from) => parseInt(hex.slice(from, from + 2), 16));
  return { tool, colour, size: Number(at("size").value) };
}

/** The controls that another model changes. */
function fitModel() {
  settings.fit();
  board.resize(settings.width(), settings.height());
  at("grey-field").hidden = settings.channels() !== 1;
  at("colour-field").hidden = settings.channels() === 1;
  for (const name of ["first", "second"]) {
    ends[name] = null;
    at(name).getContext("2d").clearRect(0, 0, at(name).width, at(name).height);
    at(name).setAttribute("aria-label", `${name === "first" ? "First" : "Second"} picture: none yet`);
  }
  const same = settings.all().filter((each) => String(each.shape) === String(settings.model().shape));
  at("compare-models").replaceChildren(...same.map((each) => {
    const box = make("input", { type: "checkbox", value: each.id, checked: "" });
    return make("label", { class: "check" }, box, ` ${each.id}`);
  }));
  labels();
}

function labels() {
  settings.numbers();
  at("grey-value").textContent = at("grey").value;
  at("size-value").textContent = at("size").value;
  at("level-value").textContent = sigma();
}

const live = { "tab-make": makePictures, "tab-compare": comparePictures, "tab-path": showPath };

/** A setting changed: make the tab's pictures again, where that is wanted. */
function changed(event) {
  if (event.target.id === "model") fitModel();
  labels();
  if (["lock", "live"].includes(event.target.id) || !at("live").checked || !live[tab]) return;
  if (["seed", "conditions"].includes(event.target.id) && event.type === "input") return; // not at every letter
  if (event.type === "change" && event.target.type === "range") return; // its input event came before
  latest(live[tab]);
}

function press(id, task, { fresh = false } = {}) {
  at(id).addEventListener("click", () => latest(async () => {
    if (fresh && !settings.locked()) settings.freshSeed();
    await task();
  }));
}

function listen() {
  for (const kind of ["input", "change"]) at("settings").addEventListener(kind, (event) => {
    if (kind === "change" && event.target.tagName === "SELECT") return; // as above
    changed(event);
  });
  at("settings").addEventListener("submit", (event) => event.preventDefault());
  at("new-seed").addEventListener("click", () => {
    settings.freshSeed();
    if (at("live").checked && live[tab]) latest(live[tab]);
  });
  press("make", makePictures, { fresh: true });
  press("compare", comparePictures, { fresh: true });
  press("path", showPath, { fresh: true });
  press("inpaint", inpaint, { fresh: true });
  press("stroke", stroke, { fresh: true });
  press("vary", vary, { fresh: true });
  press("likelihood", likelihood);
  press("between", between);
  for (const id of ["grey", "size", "level"]) at(id).addEventListener("input", labels);
  at("undo").addEventListener("click", () => say(board.undo() ? "The last change is undone." : "There is nothing to undo."));
  at("clear").addEventListener("click", () => board.clear());
  at("clear-marks").addEventListener("click", () => board.clearMarks());
  upload("upload", toBoard);
  for (const name of ["first", "second"]) {
    upload(`${name}-upload`, (blob) => takeEnd(name, blob));
    at(`${name}-board`).addEventListener("click", () => latest(async () => takeEnd(name, await board.picture())));
  }
  tabs(at("tabs"), (chosen) => { tab = chosen; });
}

function upload(id, take) {
  at(id).addEventListener("change", () => {
    const [file] = at(id).files;
    if (file) latest(() => take(file));
  });
}

board.brush = brush;
listen();
await withKey(async () => {
  const { data } = await json("v1/models");
  settings.show(data);
  at("main").hidden = false;
  fitModel();
  say("Ready.");
});
