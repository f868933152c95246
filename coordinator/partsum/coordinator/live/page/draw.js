// Elements, numbers and scales: what all pictures are made of.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element. Children are elements, texts, or lists of them; null is left out. */
export function h(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** An SVG element. */
export function s(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    element.setAttribute(key, value === true ? "" : typeof value === "number" ? short(value) : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}

const short = (value) => String(Math.round(value * 100) / 100);

/** Make `target`'s inside look like `children`, and leave alone what does already. */
export function show(target, ...children) {
  const fresh = target.cloneNode(false);
  for (const child of children.flat(Infinity)) if (child) fresh.append(child);
  morph(target, fresh);
}

/** What stays the same keeps its element: focus, selection, scrolling and tooltips survive. */
function morph(old, fresh) {
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  const before = [...old.childNodes];
  const after = [...fresh.childNodes];
  after.forEach((node, k) => {
    const known = before[k];
    if (!known) old.append(node);
    else if (known.nodeType !== node.nodeType || known.nodeName !== node.nodeName) {
      known.replaceWith(node);
    } else if (node.nodeType === Node.TEXT_NODE) {
      if (known.data !== node.data) known.data = node.data;
    } else morph(known, node);
  });
  for (const node of before.slice(after.length)) node.remove();
}

// ---- numbers as people read them ----------------------------------------------------------------

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

export function shareText(value) {
  if (!isNumber(value)) return "-";
  return value >= 0 && value <= 1 ? `${(100 * value).toFixed(2)} %` : digits(value, 4);
}

export function lossText(value) {
  if (!isNumber(value)) return "-";
  return Math.abs(value) < 10 ? value.toFixed(4) : digits(value, 4);
}

export function bytesText(value) {
  if (!isNumber(value)) return "-";
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (value < 999.5) return unit === "B" ? `${value} B` : `${digits(value, 3)} ${unit}`;
    value /= 1000;
  }
  return `${digits(value, 3)} TB`;
}

export function secondsText(value) {
  if (!isNumber(value)) return "-";
  if (value < 0.0995) return value ? `${(1000 * value).toFixed(0)} ms` : "0 s";
  if (value < 59.95) return `${value.toFixed(value < 1 ? 2 : 1)} s`;
  const whole = Math.round(value);
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} min ${two(whole % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${two(minutes % 60)} min`;
}

export function clockText(value) {
  const whole = Math.max(0, Math.floor(value));
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor(whole / 60) % 60;
  const rest = `${two(whole % 60)}`;
  return hours ? `${hours}:${two(minutes)}:${rest}` : `${minutes}:${rest}`;
}

export const countText = (value) => (isNumber(value) ? value.toLocaleString("en") : "-");
export const rateText = (value) =>
  isNumber(value) ? (value >= 9.95 ? countText(Math.round(value)) : value.toFixed(1)) : "-";
export const digits = (value, count) => String(Number(value.toPrecision(count)));
const two = (value) => String(value).padStart(2, "0");

/** `3 nodes`, `1 node`. */
export const many = (count, noun) => `${countText(count)} ${noun}${count === 1 ? "" : "s"}`;

/** The CSS classes of a part's colour: eight hues in three strengths, then again. */
export const partStyle = (part) => `p${part % 8} s${Math.floor(part / 8) % 3}`;

// ---- scales -------------------------------------------------------------------------------------

/** A straight line from values to pixels. */
export function scale(low, high, first, last) {
  const span = high - low || 1;
  const at = (value) => first + ((value - low) / span) * (last - first);
  return Object.assign(at, { low, high, first, last });
}

/** Round values that span [low, high] in about `count` steps; the ends may lie outside. */
export function niceTicks(low, high, count = 4) {
  if (!(high > low)) [low, high] = [low - (Math.abs(low) || 1) / 20, high + (Math.abs(high) || 1) / 20];
  const step = niceStep((high - low) / count);
  const first = Math.floor(low / step + 1e-9);
  const last = Math.ceil(high / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, k) => Number(((first + k) * step).toPrecision(12)));
}

function niceStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 2.5, 5, 10].map((m) => m * power).find((step) => step >= least * (1 - 1e-9));
}

const TIMES = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400];

/** Moments within [low, high] with their labels, and the unit of the labels. */
export function timeTicks(low, high, count) {
  const span = Math.max(high - low, 1e-3);
  const step = TIMES.find((time) => time >= span / count) ?? niceStep(span / count / 86400) * 86400;
  const units = [["s", 1, 120], ["min", 60, 7200], ["h", 3600, Infinity]];
  const [unit, size] = units.find(([, , most]) => high < most);
  const asClock = step % size !== 0 && size > 1;
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  const ticks = [];
  for (let k = first; k <= last; k++) ticks.push([k * step, asClock ? clockText(k * step) : digits((k * step) / size, 4)]);
  return { ticks, unit: asClock ? (high < 3600 ? "min:s" : "h:min:s") : unit };
}
