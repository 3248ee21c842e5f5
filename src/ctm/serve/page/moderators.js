// The moderators' page: the queue of held pictures, and the open reports.
import { ask, json } from "./api.js";
import { withKey } from "./key.js";
import { complain, make, say } from "./say.js";

const at = (id) => document.getElementById(id);
let counter = 0;
let addresses = [];

/** The picture under a veil, which a click takes off and puts on again. */
async function veiled(id) {
  const response = await ask(`v1/moderation/pictures/${encodeURIComponent(id)}/png`, { accept: "image/png" });
  const address = URL.createObjectURL(await response.blob());
  addresses.push(address);
  const image = make("img", { src: address, alt: `Picture ${id}` });
  const button = make("button", { type: "button", class: "veil", "aria-pressed": "false", "aria-label": `Show picture ${id}` });
  button.append(image, make("span", { "aria-hidden": "true" }, "Show"));
  button.addEventListener("click", () => button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true")));
  return button;
}

const when = (time) => `${time.slice(0, 10)} ${time.slice(11, 19)} UTC`;

function facts(pairs) {
  const rows = Object.entries(pairs).filter(([, value]) => value !== null && value !== undefined && value !== "" && JSON.stringify(value) !== "{}");
  const text = (value) => (typeof value === "object" ? JSON.stringify(value) : String(value));
  return make("dl", {}, ...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, text(value))]));
}

/** A field for words, and buttons that send them; each button is [text, path, name of the words, are they needed]. */
function decision(label, buttons) {
  const id = `words-${++counter}`;
  const words = make("input", { id, type: "text", maxlength: "4000", autocomplete: "off" });
  const made = buttons.map(([text, path, name, needed]) => make("button", { type: "button", onclick: async () => {
    if (needed && !words.value.trim()) {
      complain(`${text} needs a reason, which the record keeps: write one.`);
      words.focus();
      return;
    }
    try {
      await json(path, { body: { [name]: words.value } });
      await refresh();
      say(`Done: ${text.toLowerCase()}.`);
      at("held-title").focus();
    } catch (error) {
      complain(error.message);
    }
  } }, text));
  return make("div", {}, make("label", { for: id }, label), words, make("div", { class: "actions" }, ...made));
}

async function heldCard(picture) {
  const base = `v1/moderation/pictures/${encodeURIComponent(picture.id)}`;
  return make("li", { class: "panel", "data-picture": picture.id },
    await veiled(picture.id),
    facts({ reason: picture.reason, made: when(picture.made), key: picture.key_id, scores: picture.verdict.scores, model: picture.claim.model }),
    make("details", {}, make("summary", {}, "Claim"), facts(picture.claim)),
    decision("Reason", [["Release", `${base}/release`, "reason", false], ["Reject", `${base}/reject`, "reason", true]]));
}

async function reportCard(report) {
  const reports = `v1/moderation/reports/${encodeURIComponent(report.id)}`;
  const picture = `v1/moderation/pictures/${encodeURIComponent(report.picture)}`;
  const shown = await veiled(report.picture).catch((error) => make("p", { class: "quiet" }, error.message));
  return make("li", { class: "panel", "data-report": report.id },
    shown,
    make("p", {}, report.words),
    facts({ picture: report.picture, made: when(report.made), key: report.key_id }),
    decision("Reason or answer", [["Take the picture down", `${picture}/reject`, "reason", true], ["Close the report", `${reports}/close`, "answer", false]]));
}

async function refresh() {
  const [held, reports] = await Promise.all([json("v1/moderation/held"), json("v1/moderation/reports")]);
  const [before, heldCards, reportCards] = [addresses, [], []];
  addresses = [];
  for (const picture of held.data) heldCards.push(await heldCard(picture));
  for (const report of reports.data) reportCards.push(await reportCard(report));
  at("held").replaceChildren(...heldCards);
  at("reports").replaceChildren(...reportCards);
  at("held-none").hidden = heldCards.length > 0;
  at("reports-none").hidden = reportCards.length > 0;
  before.forEach((address) => URL.revokeObjectURL(address));
  at("main").hidden = false;
  say(`${held.data.length} held, ${reports.data.length} reported.`);
}

at("refresh").addEventListener("click", () => refresh().catch((error) => complain(error.message)));
await withKey(refresh);
