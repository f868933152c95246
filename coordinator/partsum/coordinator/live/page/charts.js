// Pictures over time and cost. Each fits the width that it is given.

import { h, niceTicks, partStyle, s, scale, secondsText, show, timeTicks } from "./draw.js";

const LEFT = 58;
const RIGHT = 12;

/** Lines through points [x, value]; `bands` are phases behind them; returns what `readOut` needs. */
export function curveChart(figure, { title, curves, bands, start, end, axis, valueText }) {
  const plot = figure.querySelector(".plot");
  const width = Math.max(plot.clientWidth, 280);
  const [top, bottom, height] = [30, 190, 224];
  const drawn = curves.filter((curve) => curve.points.length);
  const values = drawn.flatMap((curve) => curve.points.map((point) => point[1]));
  if (!values.length) {
    show(plot, caption(title, []), note(width, `${title}: nothing was measured yet`));
    return null;
  }
  const ticks = niceTicks(Math.min(...values), Math.max(...values));
  const across = scale(start, Math.max(end, start + 1e-3), LEFT, width - RIGHT);
  const up = scale(ticks[0], ticks.at(-1), bottom, top);
  show(
    plot,
    caption(title, drawn),
    picture(width, height, `${title} so far: ${drawn.map((c) => said(c, valueText)).join("; ")}`, [
      bands.map((band, k) => bandOf(band, k, across, top, bottom)),
      bottomAxis(across, bottom, top, axis),
      ticks.map((tick) => [
        line(LEFT, up(tick), width - RIGHT, up(tick), "grid"),
        label(LEFT - 8, up(tick) + 4, valueText(tick), "tick", "end"),
      ]),
      drawn.map((curve) => curveOf(curve, across, up)),
    ]),
  );
  return { curves: drawn, across, up, valueText, axis };
}

function said(curve, valueText) {
  return `${curve.name} ${valueText(curve.points.at(-1)[1])}`;
}

function caption(title, curves) {
  const keys = curves.map((curve) =>
    h("li", {}, h("i", { class: `key ${curve.style}` }), curve.name),
  );
  return h("figcaption", {}, h("b", {}, title), h("ul", { class: "legend" }, keys));
}

function curveOf(curve, across, up) {
  const places = curve.points.map(([x, y]) => [across(x), up(y)]);
  const last = places.at(-1);
  return [
    s("polyline", { class: `curve ${curve.style}`, points: places.map((p) => p.map((v) => v.toFixed(1)).join()).join(" ") }),
    places.length <= 24 && places.slice(0, -1).map(([x, y]) => s("circle", { cx: x, cy: y, r: 2.4, class: `dot ${curve.style}` })),
    s("circle", { cx: last[0], cy: last[1], r: 3.6, class: `dot newest ${curve.style}` }),
  ];
}

function bandOf(band, place, across, top, bottom) {
  const start = across(Math.max(band.start, across.low));
  const width = Math.max(across(Math.min(band.end, across.high)) - start, 0);
  return [
    s("rect", { x: start, y: top, width, height: bottom - top, class: `band b${place % 2}` }),
    line(start, top - 14, start, bottom, "band-edge"),
    width > 7 * band.name.length && label(start + 5, top - 7, band.name, "band-name"),
  ];
}

function bottomAxis(across, y, top, axis) {
  const room = Math.max(2, Math.floor((across.last - across.first) / 70));
  const { ticks, unit } =
    axis === "round"
      ? { ticks: niceTicks(across.low, across.high, room).filter(Number.isInteger).map((t) => [t, String(t)]), unit: "" }
      : timeTicks(across.low, across.high, room);
  const inside = ticks.filter(([value]) => value >= across.low && value <= across.high);
  return [
    line(across.first, y, across.last, y, "axis"),
    inside.map(([value, name]) => [
      line(across(value), top, across(value), y + 4, "grid"),
      label(across(value), y + 17, name, "tick", "middle"),
    ]),
    label(across.last, y + 32, axis === "round" ? "rounds" : `time since the start (${unit})`, "tick", "end"),
  ];
}

/** What the curves are at the pointer: a rule across the chart, and the values in words. */
export function readOut(figure, chart, x) {
  const tip = figure.querySelector(".tip");
  const svg = figure.querySelector("svg");
  svg?.querySelector(".rule")?.remove();
  tip.hidden = !chart || x === null;
  if (tip.hidden || !svg) return;
  const { across } = chart;
  const at = across.low + ((x - across.first) / (across.last - across.first)) * (across.high - across.low);
  const near = chart.curves.map((curve) => [curve, nearest(curve.points, at)]);
  const [, closest] = near.reduce((a, b) => (Math.abs(b[1][0] - at) < Math.abs(a[1][0] - at) ? b : a));
  const pixel = across(closest[0]);
  svg.append(line(pixel, chart.up.last, pixel, chart.up.first, "rule"));
  const when = chart.axis === "round" ? `round ${Math.round(closest[0])}` : secondsText(closest[0]);
  const values = near.map(([curve, point]) =>
    h("span", {}, h("i", { class: `key ${curve.style}` }), chart.valueText(point[1])),
  );
  show(tip, h("b", {}, when), values);
  const right = pixel > (across.first + across.last) / 2;
  tip.style.left = right ? "" : `${pixel + 10}px`;
  tip.style.right = right ? `${figure.clientWidth - pixel + 10}px` : "";
}

const nearest = (points, at) => points.reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a));

/** One row for each node: what it did when, in its part's colour. */
export function timelineChart(target, { nodes, stays, closed, start, end }) {
  const width = Math.max(target.clientWidth, 280);
  const left = width < 560 ? 72 : 110;
  const pitch = nodes.length <= 12 ? 26 : 14;
  const top = 6;
  const bottom = top + pitch * nodes.length;
  const across = scale(start, Math.max(end, start + 1e-3), left, width - RIGHT);
  const rows = new Map(nodes.map((name, row) => [name, top + row * pitch]));
  const inside = stays.filter((stay) => rows.has(stay.node) && stay.end > start);
  show(
    target,
    picture(width, bottom + 38, "What each node did over time", [
      bottomAxis(across, bottom, top, "seconds"),
      closed.filter((at) => at >= start).map((at) => line(across(at), top, across(at), bottom, "closed")),
      nodes.map((name) => [
        label(left - 10, rows.get(name) + pitch / 2 + 4, cut(name, left / 8), "name", "end"),
        line(left, rows.get(name) + pitch / 2, width - RIGHT, rows.get(name) + pitch / 2, "idle"),
      ]),
      inside.map((stay) => stretch(stay, across, rows.get(stay.node), pitch)),
    ]),
  );
}

function stretch(stay, across, y, pitch) {
  const x = across(Math.max(stay.start, across.low));
  const width = Math.max(across(stay.end) - x, 0.8);
  const trains = stay.state === "training";
  const inset = trains ? Math.min(3, pitch / 5) : pitch * 0.32;
  const style = trains ? `work ${partStyle(stay.part)}` : stay.state;
  const tip = `${stay.node}: ${stay.state} part ${stay.part}, round ${stay.round}, ${secondsText(stay.end - stay.start)}`;
  return [
    s("rect", { x, y: y + inset, width, height: pitch - 2 * inset, rx: Math.min(2, width / 6), class: `${style}${stay.now ? " now" : ""}` },
      s("title", {}, tip)),
    trains && width > 22 && pitch > 20 && label(x + width / 2, y + pitch / 2 + 4, stay.part, "inside", "middle"),
  ];
}

/** Score against cost of a search's newest structures; those that none beats are joined. */
export function frontChart(target, { title, dots, higherIsBetter, valueText }) {
  const width = Math.max(target.clientWidth, 280);
  const [top, bottom] = [14, 214];
  const aside = niceTicks(Math.min(...dots.map((d) => d.cost)), Math.max(...dots.map((d) => d.cost)), width < 560 ? 3 : 6);
  const ticks = niceTicks(Math.min(...dots.map((d) => d.score)), Math.max(...dots.map((d) => d.score)));
  const across = scale(aside[0], aside.at(-1), LEFT, width - RIGHT);
  const up = higherIsBetter ? scale(ticks[0], ticks.at(-1), bottom, top) : scale(ticks[0], ticks.at(-1), top, bottom);
  const front = dots.filter((dot) => dot.onFront).sort((a, b) => a.cost - b.cost);
  show(
    target,
    picture(width, bottom + 38, title, [
      line(LEFT, bottom, width - RIGHT, bottom, "axis"),
      ticks.map((tick) => [
        line(LEFT, up(tick), width - RIGHT, up(tick), "grid"),
        label(LEFT - 8, up(tick) + 4, valueText(tick), "tick", "end"),
      ]),
      aside.map((tick) => label(across(tick), bottom + 17, tick, "tick", "middle")),
      label(width - RIGHT, bottom + 32, "MFLOP of training, a sample", "tick", "end"),
      s("polyline", { class: "curve hand", points: front.map((d) => `${across(d.cost).toFixed(1)},${up(d.score).toFixed(1)}`).join(" ") }),
      dots.map((dot) =>
        s("circle", { cx: across(dot.cost), cy: up(dot.score), r: 3.6, class: `dot ${dot.onFront ? "hand" : "main"}` }, s("title", {}, dot.tip)),
      ),
    ]),
  );
}

/** An SVG picture that says what it shows to those who cannot see it. */
export function picture(width, height, description, parts) {
  return s("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": description }, parts);
}

export const line = (x1, y1, x2, y2, style) => s("line", { x1, y1, x2, y2, class: style });
export const label = (x, y, text, style, anchor = "start") =>
  s("text", { x, y, class: style, "text-anchor": anchor }, String(text));
export const cut = (text, length) => (text.length <= length ? text : `${text.slice(0, Math.max(1, length - 2))}..`);

const note = (width, text) => picture(width, 60, text, [label(0, 34, text, "tick")]);
