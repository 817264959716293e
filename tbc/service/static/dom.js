// Elements. Text comes in as text only: nothing here reads markup, and the page's policy forbids it.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** Make an element; attributes that are null are left out. */
export function make(name, attributes = {}, ...inside) {
  return filled(document.createElement(name), attributes, inside);
}

export function draw(name, attributes = {}, ...inside) {
  return filled(document.createElementNS(SVG, name), attributes, inside);
}

function filled(element, attributes, inside) {
  for (const [name, value] of Object.entries(attributes)) if (value !== null) element.setAttribute(name, value);
  element.append(...inside);
  return element;
}

/** Change the text of an element if it is another one. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Change an attribute if it is another one. */
export function put(element, name, value) {
  const text = String(value);
  if (element.getAttribute(name) !== text) element.setAttribute(name, text);
}

/** Change what an element has inside. */
export function fill(element, ...inside) {
  element.replaceChildren(...inside);
}

/** An agent's name as it may be shown: at most so long, and the whole of it for whoever points at it. */
export function clipped(name, most = 28) {
  const signs = [...name];
  return signs.length > most ? `${signs.slice(0, most - 1).join("")}…` : name;
}

const timeOf = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const dayOf = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });

const fullOf = new Intl.DateTimeFormat(undefined, {
  month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit",
});

/** A moment in the reader's own time: the time of day, or with the day, or what a span of so many seconds needs. */
export const clock = (seconds) => timeOf.format(seconds * 1000);
export const moment = (seconds) => fullOf.format(seconds * 1000);
export const within = (seconds, span) => (span > 86_400 ? dayOf : timeOf).format(seconds * 1000);
