// Follows a run: asks for its status, listens for changes, and draws what is new.

import { curveChart, frontChart, readOut, timelineChart } from "./charts.js";
import { clockText, countText, digits, h, lossText, shareText, show } from "./draw.js";
import { partsSection } from "./parts.js";
import {
  figures, hasEnded, heading, incidentsSection, nodesSection, roundsSection, standingsTable, track,
} from "./sections.js";

const RETRY_MS = 2000;
const REST_MS = 10000; // after the end: somebody may resume it, or start another run
const HISTORY_MS = 1000; // the coordinator gathers it no more often
const ANSWER_MS = 10000; // the coordinator itself gives up after five seconds
const SILENCE_MS = 12000; // a stream says something every five seconds
const NODES_DRAWN = 40;
const ROUNDS_SHOWN = 40; // on the timeline

const page = { status: null, history: null, heardAt: 0, lostAt: 0, axis: "seconds", charts: {} };
const $ = (id) => document.getElementById(id);
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

// ---- asking -------------------------------------------------------------------------------------

async function ask(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(ANSWER_MS) });
  if (answer.status === 401) location.reload(); // the form for the token is there instead
  if (!answer.ok) throw new Error((await answer.json()).error);
  return answer.json();
}

async function follow() {
  for (;;) {
    try {
      await seen();
      take(await ask("api/status"));
      await stream();
    } catch (error) {
      page.lostAt ||= Date.now();
    }
    draw();
    await sleep(page.status && hasEnded(page.status) ? REST_MS : RETRY_MS);
  }
}

/** A page that nobody looks at takes no thread of the coordinator. */
const seen = () =>
  new Promise((done) => {
    if (!document.hidden) return done();
    document.addEventListener("visibilitychange", () => done(), { once: true });
  });

/** Messages until the stream breaks, or says nothing for long. */
function stream() {
  return new Promise((done) => {
    const source = new EventSource("api/events");
    const end = () => {
      source.close();
      clearTimeout(silence);
      document.removeEventListener("visibilitychange", end);
      done();
    };
    const mute = () => {
      page.lostAt ||= Date.now() - SILENCE_MS;
      end();
    };
    let silence = setTimeout(mute, SILENCE_MS);
    source.addEventListener("status", (event) => {
      clearTimeout(silence);
      silence = setTimeout(mute, SILENCE_MS);
      take(JSON.parse(event.data));
    });
    source.addEventListener("history", (event) => (page.history = JSON.parse(event.data)));
    source.addEventListener("error", end);
    document.addEventListener("visibilitychange", end);
  });
}

function take(status) {
  if (page.status && page.status.run !== status.run) page.history = null; // another run has the port
  page.status = status;
  page.heardAt = Date.now();
  page.lostAt = 0;
  draw();
  refresh();
}

let asking = false;

/** Fetch the history where the status says that it has news. */
async function refresh() {
  if (asking) return;
  asking = true;
  try {
    while (!document.hidden && page.status.history !== page.history?.history) {
      page.history = await ask("api/history");
      draw();
      await sleep(HISTORY_MS);
    }
  } catch {
    // The stream breaks too, and says so.
  } finally {
    asking = false;
  }
}

// ---- drawing ------------------------------------------------------------------------------------

const elapsed = () => {
  const { status, heardAt, lostAt } = page;
  const still = hasEnded(status) || lostAt;
  return status.elapsed_seconds + (still ? 0 : (Date.now() - heardAt) / 1000);
};

function link() {
  const { status, lostAt } = page;
  if (hasEnded(status)) return { kind: "over", text: "the run has ended" };
  if (lostAt) return { kind: "lost", text: `no answer for ${clockText((Date.now() - lostAt) / 1000)}, trying again` };
  return { kind: "on", text: "live" };
}

function draw() {
  const { status, history } = page;
  if (!status) {
    $("reason").textContent = page.lostAt ? "the coordinator does not answer; trying again" : "asking the coordinator ...";
    return;
  }
  document.title = titleText(status);
  document.querySelector("main").removeAttribute("aria-busy");
  show($("heading"), heading(status, link(), elapsed()));
  drawReason(status);
  show($("track"), track(status, history));
  show($("figures"), figures(status, history));
  section("parts", partsSection(status, history, width()));
  section("nodes", nodesSection(status));
  if (history) drawHistory(status, history);
  document.body.dataset.phase = status.phase;
}

function drawReason(status) {
  const said = hasEnded(status) ? outcome(status) : status.reason;
  const box = $("reason");
  box.className = status.phase === "failed" || status.phase === "stopped" ? `alarm ${status.phase}` : status.phase;
  if (page.lostAt && !hasEnded(status)) box.classList.add("stale");
  if (box.textContent !== said) box.textContent = said;
}

function outcome(status) {
  const where = `${status.folder}/report.html`;
  if (status.phase === "finished") return `The run is done. Its report: ${where}`;
  return `The run ${status.phase === "failed" ? "failed" : "was stopped, and can be resumed"}: ${status.reason}`;
}

function titleText(status) {
  const round = `round ${Math.min(status.round + 1, status.rounds)} of ${status.rounds}`;
  const where = { parts: round, cotrain: round, handoff: "hand-off" };
  return `${where[status.phase] ?? status.phase} · ${shareText(status.accuracy)} · ${status.run}`;
}

function drawHistory(status, history) {
  section("rounds", roundsSection(history));
  section("incidents", incidentsSection(history));
  drawCurves(status, history);
  drawTimeline(status, history);
  drawStructures(status, history);
  $("facts").textContent = `${history.task}, planner ${history.planner}, seed ${history.seed}`;
}

function section(id, children) {
  $(id).hidden = !children.length;
  if (children.length) show($(id), children);
}

const width = () => Math.max(280, document.querySelector("main").clientWidth - padding());
const padding = () => {
  const style = getComputedStyle(document.querySelector("main"));
  return parseFloat(style.paddingLeft) + parseFloat(style.paddingRight);
};

function drawCurves(status, history) {
  const byRound = page.axis === "round";
  const at = (round) => (byRound ? round.round : round.closed_seconds);
  const hand = byRound ? [] : history.handoff;
  const points = (rows, x, key) => rows.filter((row) => row[key] !== null).map((row) => [x(row), row[key]]);
  const seconds = (point) => point.seconds;
  const start = byRound ? 1 : history.rounds[0]?.opened_seconds ?? history.handoff_began_seconds ?? 0;
  const end = byRound ? Math.max(history.rounds.at(-1)?.round ?? 2, 2) : elapsed();
  const bands = byRound ? [] : phaseBands(history, end);
  const draw = (id, title, curves, valueText) => {
    page.charts[id] = curveChart($(id), { title, curves, bands, start, end, axis: page.axis, valueText });
  };
  $("learning").hidden = !history.rounds.length && !history.handoff.length;
  if ($("learning").hidden) return;
  const base = { name: "base, on validation data", style: "main" };
  draw("accuracy", "Accuracy", [{ ...base, points: [...points(history.rounds, at, "accuracy"), ...points(hand, seconds, "accuracy")] }], shareTick);
  draw("loss", "Loss", [
    { name: "parts, training", style: "light", points: points(history.rounds, at, "part_loss") },
    { name: "hand-off, training", style: "hand", points: points(hand, seconds, "loss") },
    { ...base, points: [...points(history.rounds, at, "loss"), ...points(hand, seconds, "validation_loss")] },
  ], (value) => digits(value, 4));
}

const shareTick = (value) => (value >= -0.1 && value <= 1.1 ? `${digits(100 * value, 4)} %` : digits(value, 4));

function phaseBands(history, end) {
  const first = history.rounds[0]?.opened_seconds;
  const began = history.handoff_began_seconds;
  return [
    first !== undefined && { name: "parts", start: first, end: began ?? end },
    began !== null && { name: "hand-off", start: began, end },
  ].filter(Boolean);
}

function drawTimeline(status, history) {
  const nodes = status.nodes.map((node) => node.name).slice(0, NODES_DRAWN);
  const closed = history.rounds.map((round) => round.closed_seconds);
  const start = history.rounds.at(-ROUNDS_SHOWN)?.opened_seconds ?? history.timeline[0]?.start_seconds ?? 0;
  const told = history.timeline.map((stay) => ({ ...stay, start: stay.start_seconds, end: stay.end_seconds }));
  const stays = [...told, ...status.nodes.map((node) => present(node, status, history)).filter(Boolean)];
  $("timeline").hidden = !stays.length;
  if (!stays.length) return;
  const box = $("timeline");
  if (!box.querySelector(".plot")) {
    show(box, h("div", { class: "bar" }, h("h2", {}, "Timeline"), h("ul", { class: "legend" },
      h("li", {}, h("i", { class: "swatch p0" }), "training, in its part's colour"),
      h("li", {}, h("i", { class: "swatch wire" }), "receiving or sending"),
      h("li", {}, "dotted: a round committed"))), h("div", { class: "plot" }));
  }
  const began = history.handoff_began_seconds; // nodes may work on: in a hand-off over nodes
  const end = began === null ? elapsed() : Math.max(began, ...stays.map((stay) => stay.end));
  timelineChart(box.querySelector(".plot"), { nodes, stays, closed, start, end });
}

/** What a node is doing now; the journal tells of it only once its update is in. */
function present(node, status, history) {
  if (!["training", "receiving", "sending"].includes(node.state)) return null;
  const before = history.timeline.findLast((stay) => stay.node === node.name)?.end_seconds ?? 0;
  const opened = history.rounds.at(-1)?.closed_seconds ?? history.opened_seconds ?? 0;
  return { node: node.name, state: node.state, part: node.part ?? 0, round: status.round + 1, start: Math.max(before, opened), end: elapsed(), now: true };
}

function drawStructures(status, history) {
  const { search } = history;
  $("structures").hidden = !search || !status.standings.length;
  if ($("structures").hidden) return;
  const newest = Math.max(...search.structures.map((one) => one.rounds));
  const present = search.structures.filter((one) => one.rounds === newest);
  const byLoss = search.by === "loss" || present.every((one) => one.accuracy === null);
  const key = byLoss ? "loss" : "accuracy";
  const dots = present.filter((one) => one[key] !== null).map((one) => ({
    cost: one.flops / 1e6, score: one[key], onFront: one.on_front,
    tip: `${one.bits}: accuracy ${shareText(one.accuracy)}, loss ${lossText(one.loss)}, ${countText(one.parameters)} parameters`,
  }));
  const box = $("structures");
  const head = h("div", { class: "bar" }, h("h2", {}, "Structures"),
    h("p", { class: "note" }, `${status.parts.length ? status.parts_count : search.structures.filter((one) => one.alive).length} of ${search.structures.length} left; ${key} against cost, after round ${newest}`));
  const plot = h("div", { class: "plot" });
  const old = box.querySelector(".plot");
  if (old) plot.append(...[...old.childNodes].map((node) => node.cloneNode(true)));
  show(box, head, plot, standingsTable(status, search));
  if (dots.length > 1) {
    frontChart(box.querySelector(".plot"), {
      title: `${key} of each structure against the FLOPs of training it`, dots, higherIsBetter: !byLoss,
      valueText: byLoss ? (value) => digits(value, 4) : shareTick,
    });
  }
}

// ---- what the reader does -----------------------------------------------------------------------

for (const id of ["accuracy", "loss"]) {
  const figure = $(id);
  const at = (event) => readOut(figure, page.charts[id], event.clientX - figure.getBoundingClientRect().left);
  figure.addEventListener("pointermove", at);
  figure.addEventListener("pointerdown", at);
  figure.addEventListener("pointerleave", () => readOut(figure, page.charts[id], null));
}
for (const choice of document.querySelectorAll("input[name=axis]")) {
  choice.addEventListener("change", () => {
    page.axis = choice.value;
    draw();
  });
}
let drawnWidth = 0;
new ResizeObserver(() => {
  if (width() !== drawnWidth) draw();
  drawnWidth = width();
}).observe(document.querySelector("main"));
setInterval(() => page.status && !document.hidden && (!hasEnded(page.status) || page.lostAt) && draw(), 1000);
follow();
