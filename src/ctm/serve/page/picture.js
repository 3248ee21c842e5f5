// A picture that came: shown, described, downloaded as it was signed, taken to the drawing board, reported.
import { ask, json } from "./api.js";
import { complain, make, say } from "./say.js";

const shown = new WeakMap(); // a container -> the addresses of its pictures

export function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

/** Fill a container with figures of these items; what was in it is let go. */
export function fill(container, items, { draw = null, label = (item) => item.label } = {}) {
  for (const address of shown.get(container) ?? []) URL.revokeObjectURL(address);
  const addresses = [];
  const list = container.tagName === "OL";
  const shared = { addresses, draw, small: list };
  const figures = items.map((item, index) => {
    const one = item.b64_json
      ? figure(item, new Blob([bytes(item.b64_json)], { type: "image/png" }), label(item, index), shared)
      : kept(item, (blob) => figure(item, blob, `Picture ${item.id}`, shared));
    return list ? make("li", {}, one) : one;
  });
  container.classList.toggle("alone", figures.length === 1);
  container.replaceChildren(...figures);
  shown.set(container, addresses);
}

/** small: the buttons are behind "More". */
function figure(item, blob, label, { addresses, draw, small }) {
  const address = URL.createObjectURL(blob);
  addresses.push(address);
  const image = make("img", { src: address, alt: label, "data-picture": item.id });
  const download = make("a", { class: "button", href: address, download: `ctm-${item.id}.png` }, "Download");
  download.setAttribute("aria-label", `Download ${label}, signed`);
  const actions = [download];
  if (draw) actions.push(action("To the board", `To the board: ${label}`, () => draw(blob)));
  actions.push(action("Report", `Report this picture: ${label}`, () => report(item.id)));
  const caption = make("figcaption", {}, label);
  const row = make("div", { class: "actions" }, ...actions);
  const facts = provenance(item);
  if (small) return make("figure", {}, image, caption, make("details", {}, make("summary", {}, "More"), row, facts));
  return make("figure", {}, image, caption, row, make("details", {}, make("summary", {}, "Where it comes from"), facts));
}

function action(text, label, act) {
  return make("button", { type: "button", "aria-label": label, onclick: act }, text);
}

function provenance(item) {
  const { model_digest, ...claim } = item.claim ?? {}; // the same as digest
  const facts = { id: item.id, ...claim };
  const rows = Object.entries(facts).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const text = (value) => (typeof value === "object" ? JSON.stringify(value) : String(value));
  return make("dl", {}, ...rows.flatMap(([name, value]) => [make("dt", {}, name.replaceAll("_", " ")), make("dd", {}, text(value))]));
}

/** In place of a picture that is held or blocked. A held one can be asked for again. */
function kept(item, show) {
  const held = item.decision === "hold";
  const words = held ? `This picture is held until a moderator has looked at it. Its id is ${item.id}.` : "A picture was blocked by the service's filter.";
  const box = make("div", { class: "held" }, make("p", {}, words));
  if (held) box.append(action("Ask for it again", `Ask for it again: picture ${item.id}`, () => again(item.id, box, show)));
  return box;
}

async function again(id, box, show) {
  try {
    const blob = await (await ask(`v1/images/${encodeURIComponent(id)}`, { accept: "image/png" })).blob();
    box.replaceWith(show(blob));
    say("The picture was released.");
  } catch (error) {
    say(error.status === 404 ? "The picture is not released, or not yet." : error.message);
  }
}

function report(id) {
  const dialog = document.getElementById("report-dialog");
  const words = document.getElementById("report-words");
  words.value = "";
  document.getElementById("report-form").onsubmit = async (event) => {
    event.preventDefault();
    try {
      await json("v1/reports", { body: { picture: id, words: words.value } });
      say("The report was sent. A moderator will look at the picture.");
    } catch (error) {
      complain(error.message);
    }
    dialog.close();
  };
  document.getElementById("report-cancel").onclick = () => dialog.close();
  dialog.showModal();
  words.focus();
}
