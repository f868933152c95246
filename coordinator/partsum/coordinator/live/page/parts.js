// The model as a sum of parts: which units each keeps, who trains it, how far it is.

import { cut, label, picture } from "./charts.js";
import { countText, h, many, partStyle, s, scale } from "./draw.js";

const TILES = 16; // of more parts, each is a small square
const LANES = 8; // of more parts that share units, a bar would have no height for each

/** The whole section. */
export function partsSection(status, history, width) {
  const parts = status.parts.length ? status.parts : lastParts(status, history);
  if (!parts.length) return [];
  const drawn = history ? modelMap(parts, history, width) : null;
  return [
    h("div", { class: "bar" }, h("h2", {}, "Parts"), h("p", { class: "note" }, headline(status, parts))),
    drawn,
    parts.length <= TILES ? tiles(parts, history, status.round) : squares(parts, status, history),
  ];
}

/** Between rounds and after them: the newest round's parts, all in. */
function lastParts(status, history) {
  const told = history?.parts ?? [];
  const whole = status.round > 0 ? "merged" : "waiting";
  return told.map(({ part }) => ({ part, node: "", state: whole, progress: whole === "merged" ? 1 : 0 }));
}

function headline(status, parts) {
  if (status.phase !== "parts") return `${many(parts.length, "part")} of the base`;
  const busy = status.parts.filter((part) => ["receiving", "training", "sending"].includes(part.state)).length;
  return `round ${Math.min(status.round + 1, status.rounds)}: ${status.parts_in} of ${status.parts_count} in, ${busy} at work`;
}

function tiles(parts, history, rounds) {
  return h("ol", { class: "tiles" }, parts.map((part) => tile(part, history, rounds)));
}

function tile(part, history, rounds) {
  const off = history?.parts[part.part]?.gates_off ?? [];
  const bits = bitsOf(history?.parts[part.part], history?.search?.gates ?? []);
  return h(
    "li",
    { class: `tile ${partStyle(part.part)} ${part.state}` },
    h("p", {}, h("i", { class: `swatch ${partStyle(part.part)}` }), h("b", {}, bits ? h("code", {}, bits) : `part ${part.part}`), h("span", { class: "state" }, stateText(part))),
    h("progress", { max: 1, value: part.progress.toFixed(3), "aria-label": `part ${part.part}` }),
    h("p", { class: "small" }, part.node || (part.state === "merged" ? `round ${rounds}` : "nobody yet"), off.length > 0 && !bits && ` · ${many(off.length, "gate")} off`),
  );
}

function stateText(part) {
  return part.state === "training" ? `${Math.round(100 * part.progress)} %` : part.state;
}

/** Many parts at once: each a square that fills; those of a search are named by their gates. */
function squares(parts, status, history) {
  const gates = history?.search?.gates ?? [];
  const left = status.parts_count - parts.length;
  return [
    h("ol", { class: "squares" }, parts.map((part) => {
      const bits = bitsOf(history?.parts[part.part], gates);
      const tip = `part ${part.part}${bits ? `, structure ${bits}` : ""}: ${stateText(part)}${part.node ? `, ${part.node}` : ""}`;
      return h("li", { class: `square ${part.state}`, title: tip },
        h("progress", { max: 1, value: part.progress.toFixed(3), "aria-label": tip }), h("span", {}, bits || String(part.part)));
    })),
    left > 0 && status.phase === "parts" && h("p", { class: "note" }, `and ${many(left, "part")} more`),
  ];
}

/** A structure's name: 1 for each gate that is on. */
function bitsOf(part, gates) {
  if (!part || !gates.length || gates.length > 12) return "";
  return gates.map((gate) => (part.gates_off.includes(gate) ? "0" : "1")).join("");
}

/** Each width group is a bar; a part's units are pale until they are trained in this round. */
function modelMap(parts, history, width) {
  const groups = Object.entries(history.groups);
  const kept = history.parts.filter((part) => Object.keys(part.units).length);
  if (!groups.length || !kept.length) return null;
  const [left, right, pitch, height] = [width < 560 ? 92 : 160, width < 560 ? 8 : 86, 24, 17];
  const bottom = pitch * groups.length;
  const drawn = groups.map(([name, units], row) => {
    const across = scale(0, units, left, width - right);
    const y = row * pitch + 2;
    return [
      label(left - 10, y + 13, cut(name, left / 7), "name", "end"),
      s("rect", { x: left, y, width: across.last - left, height, class: "unit" }),
      right > 20 && label(width - right + 10, y + 13, `${countText(units)} units`, "tick"),
      stripes(name, units, kept, parts, across, y, height),
    ];
  });
  const more = history.groups_left_out;
  return h(
    "div",
    { class: "map" },
    picture(width, bottom + 4, "Which part keeps which units, and how far each is trained", drawn),
    h("p", { class: "note small" },
      "Each bar is a width group, each colour a part that keeps those units",
      parts.some((part) => part.progress < 1) ? "; pale: still to be trained in this round." : ".",
      more > 0 && ` ${many(more, "more group")} not shown.`),
  );
}

function stripes(name, units, kept, parts, across, y, height) {
  const ranges = kept.map((part) => part.units[name] ?? [[0, units]]);
  const held = ranges.flat().reduce((sum, [first, last]) => sum + last - first, 0);
  const shared = held > units && kept.length <= LANES; // each a lane of its own
  const lane = shared ? height / kept.length : height;
  return kept.map((part, k) => {
    const state = parts.find((one) => one.part === part.part);
    const done = state?.progress ?? 0;
    const place = y + (shared ? k * lane : 0);
    const tip = `${name}: part ${part.part}${state?.node ? `, ${state.node}` : ""}, ${state ? stateText(state) : ""}`;
    return ranges[k].map(([first, last]) => {
      const [x, full] = [across(first), across(last) - across(first)];
      const box = (wide, style) => s("rect", { x, y: place, width: wide, height: lane, class: `unit ${partStyle(part.part)} ${style}` }, s("title", {}, tip));
      return [box(full, "pale"), done > 0 && box(full * done, "done")];
    });
  });
}
