// What the page tells: a status that is read out when there is time, an alert that is read out at once.
const element = (id) => document.getElementById(id);

export function say(text) {
  element("alert").textContent = "";
  element("status").textContent = text;
}

export function complain(text) {
  element("status").textContent = "";
  element("alert").textContent = text;
}

/** An element with attributes, properties that begin with "on" as listeners, and children. */
export function make(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) {
    if (attribute.startsWith("on")) made.addEventListener(attribute.slice(2), value);
    else if (value !== null && value !== undefined) made.setAttribute(attribute, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}
