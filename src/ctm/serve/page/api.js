// The service's HTTP interface. The key is in sessionStorage and in the Authorization header, never in an address.
const KEY = "ctm-key";
const base = new URL("../", document.baseURI);

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (text) => sessionStorage.setItem(KEY, text),
  forget: () => sessionStorage.removeItem(KEY),
};

/** An answer that is no result. code, pictures: of the service's error, where it gave them. */
export class Refused extends Error {
  constructor(message, status, { code = null, pictures = [] } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.pictures = pictures;
  }
}

async function refusal(response) {
  let said = null;
  try {
    said = (await response.json()).error;
  } catch {
    // no JSON: the sentence below says what is known
  }
  const wait = response.headers.get("Retry-After");
  const again = response.status === 429 && wait ? ` Try again in ${wait} s.` : "";
  const message = said?.message ?? `The service answered ${response.status} ${response.statusText}`.trim();
  return new Refused(message.replace(/([^.!?])$/, "$1.") + again, response.status, said ?? {});
}

/** The response to a request; throws Refused. body: an object (sent as JSON) or FormData. */
export async function ask(path, { method, body, accept } = {}) {
  const headers = new Headers();
  if (key.get()) headers.set("Authorization", `Bearer ${key.get()}`);
  if (accept) headers.set("Accept", accept);
  const form = body instanceof FormData;
  if (body && !form) headers.set("Content-Type", "application/json");
  const options = { method: method ?? (body ? "POST" : "GET"), headers, cache: "no-store", credentials: "omit" };
  if (body) options.body = form ? body : JSON.stringify(body);
  let response;
  try {
    response = await fetch(new URL(path, base), options);
  } catch {
    throw new Refused("The service does not answer. Is it running?", 0);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

export async function json(path, options) {
  return (await ask(path, options)).json();
}

/** FormData of named values; what is null or undefined is left out, a mapping becomes JSON text. */
export function form(values) {
  const data = new FormData();
  for (const [name, value] of Object.entries(values)) {
    if (value === null || value === undefined) continue;
    if (value instanceof Blob) data.append(name, value, `${name}.png`);
    else data.append(name, typeof value === "object" ? JSON.stringify(value) : String(value));
  }
  return data;
}
