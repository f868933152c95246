// What is read rather than looked at: heading, figures, and tables.

import {
  bytesText, clockText, countText, digits, h, lossText, many, partStyle, rateText, s, secondsText, shareText,
} from "./draw.js";

const NODES = 16; // a screen has no room for more: those that do something come first
const ROUNDS = 12;
const INCIDENTS = 16;
const STANDINGS = 10;
const PHASES = { waiting: "waiting", parts: "parts", cotrain: "co-training", handoff: "hand-off" };
const ROUND_PHASES = ["parts", "cotrain"];
export const STAGES = ["plan", "send", "train", "receive", "merge", "evaluate"];
const BUSY = ["receiving", "training", "sending"];

export const hasEnded = (status) => ["finished", "stopped", "failed"].includes(status.phase);

export function heading(status, link, elapsed) {
  return [
    h("p", { class: "eyebrow" },
      h("b", { class: status.phase }, PHASES[status.phase] ?? status.phase),
      h("span", { class: `link ${link.kind}` }, link.text),
      h("time", { class: "clock", title: "since the start of the run" }, clockText(elapsed))),
    h("h1", {}, status.run),
  ];
}

/** Where the run is on its way, as three steps that fill. */
export function track(status, history) {
  const handoff = history ? history.handoff_planned : true;
  const planned = history?.rounds_before_handoff ?? status.rounds;
  const rounds = planned ? (status.round + (status.parts_count && ROUND_PHASES.includes(status.phase) ? status.parts_in / status.parts_count : 0)) / planned : 0;
  const done = status.phase === "finished";
  const past = done || status.phase === "handoff" || history?.handoff_began_seconds != null;
  const steps = [
    planned > 0 && { name: status.phase === "cotrain" ? "co-training" : "parts", share: past ? 1 : rounds, text: `${Math.min(status.round, planned)} of ${many(planned, "round")}`, on: ROUND_PHASES.includes(status.phase) },
    handoff && { name: "hand-off", share: done ? 1 : status.handoff_steps ? status.handoff_step / status.handoff_steps : 0, text: handoffText(status), on: status.phase === "handoff" },
  ].filter(Boolean);
  return h("ol", { class: "track" }, steps.map((step) =>
    h("li", { class: step.on ? "on" : null, "aria-current": step.on ? "step" : null },
      h("p", {}, h("b", {}, step.name), h("span", {}, step.text)),
      h("progress", { max: 1, value: Math.min(step.share, 1).toFixed(4), "aria-label": step.name }))));
}

function handoffText(status) {
  if (status.handoff_steps) return `step ${countText(status.handoff_step)} of ${countText(status.handoff_steps)}`;
  if (status.phase === "handoff") return "DeepSpeed is starting";
  return status.phase === "finished" ? "done" : "DeepSpeed, after the parts";
}

export function figures(status, history) {
  const scored = (history?.rounds ?? []).filter((round) => round.accuracy !== null);
  const connected = status.nodes.filter((node) => node.state !== "gone");
  const busy = connected.filter((node) => BUSY.includes(node.state)).length;
  const speed = connected.reduce((sum, node) => sum + (node.state === "training" ? node.samples_per_second ?? 0 : 0), 0);
  const shown = [
    ["Accuracy", shareText(status.accuracy), gained(status, scored)],
    ["Loss", lossText(status.loss), "of the base, on validation data"],
    ["Nodes", String(connected.length), speed ? `${busy} at work, ${rateText(speed)} samples/s` : `${busy} at work`],
    ["To nodes", bytesText(status.bytes_sent), "from the coordinator"],
    ["From nodes", bytesText(status.bytes_received), "updates, mostly"],
    ["Base", history ? countText(history.base_parameters) : "-", "parameters"],
  ];
  return h("dl", { class: "figures" }, shown.map(([name, value, small]) =>
    h("div", {}, h("dt", {}, name), h("dd", { class: "big" }, value), h("dd", { class: "small" }, small))));
}

/** What the newest step has brought, in words. */
function gained(status, scored) {
  const [before, newest] = scored.slice(-2).map((round) => round.accuracy);
  if (status.handoff_steps && scored.length) return `${shareText(scored.at(-1).accuracy)} after the parts`;
  if (newest === undefined || newest > 1) return "on validation data";
  const points = 100 * (newest - before);
  return points ? `${points > 0 ? "+" : ""}${digits(points, 2)} points in the last round` : "as in the round before";
}

export function nodesSection(status) {
  const { nodes } = status;
  if (!nodes.length) return [];
  const heads = ["node", "state", "part", "samples/s", "loss", "peak memory", "to it", "from it", "updates"];
  return [
    h("div", { class: "bar" }, h("h2", {}, "Nodes"), h("p", { class: "note" }, stateCounts(nodes))),
    h("table", { class: "nodes" },
      h("thead", {}, h("tr", {}, heads.map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, telling(nodes).map(nodeRow))),
    nodes.length > NODES && h("p", { class: "note" }, `and ${many(nodes.length - NODES, "node")} more`),
  ];
}

function telling(nodes) {
  if (nodes.length <= NODES) return nodes;
  const rank = (node) => (BUSY.includes(node.state) ? 0 : ["idle", "loading"].includes(node.state) ? 2 : 1);
  return [...nodes].sort((a, b) => rank(a) - rank(b)).slice(0, NODES);
}

function stateCounts(nodes) {
  const counts = new Map();
  for (const node of nodes) counts.set(node.state, (counts.get(node.state) ?? 0) + 1);
  return [...counts].map(([state, count]) => `${count} ${state}`).join(", ");
}

function nodeRow(node) {
  const cells = [
    ["part", node.part === null ? "" : [h("i", { class: `swatch ${partStyle(node.part)}` }), String(node.part), " ", h("progress", { max: 1, value: node.progress.toFixed(3), class: partStyle(node.part), "aria-label": `${node.name}: part ${node.part}` })]],
    ["samples/s", rateText(node.samples_per_second)],
    ["loss", lossText(node.loss)],
    ["peak memory", bytesText(node.peak_memory_bytes)],
    ["to it", bytesText(node.bytes_sent)],
    ["from it", bytesText(node.bytes_received)],
    ["updates", countText(node.updates)],
  ];
  return h("tr", { class: node.state },
    h("th", { scope: "row" }, node.name, h("small", {}, node.device)),
    h("td", { "data-name": "state" }, h("span", { class: `chip ${node.state}` }, node.state)),
    cells.map(([name, value]) => h("td", { "data-name": name }, value)));
}

export function roundsSection(history) {
  const rounds = history.rounds.slice(-ROUNDS).reverse();
  if (!rounds.length) return [];
  const longest = Math.max(...rounds.map((round) => round.closed_seconds - round.opened_seconds));
  return [
    h("div", { class: "bar" }, h("h2", {}, "Rounds"),
      h("ul", { class: "legend" }, STAGES.map((stage) => h("li", {}, h("i", { class: `swatch stage-${stage}` }), stage)))),
    h("table", { class: "rounds" },
      h("thead", {}, h("tr", {}, ["round", "accuracy", "loss", "took", "where its time went"].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, rounds.map((round) => roundRow(round, longest)))),
    history.rounds.length > ROUNDS && h("p", { class: "note" }, `the newest ${ROUNDS} of ${history.rounds.at(-1).round}`),
  ];
}

function roundRow(round, longest) {
  const took = round.closed_seconds - round.opened_seconds;
  const known = STAGES.map((stage) => [stage, round.stage_seconds[stage] ?? 0]);
  const sum = known.reduce((total, [, seconds]) => total + seconds, 0) || 1;
  const tip = known.map(([stage, seconds]) => `${stage} ${secondsText(seconds)}`).join(", ");
  let x = 0;
  const bars = known.map(([stage, seconds]) => {
    const wide = (100 * seconds) / sum * (took / longest);
    x += wide;
    return s("rect", { x: x - wide, y: 0, width: wide, height: 10, class: `stage-${stage}` });
  });
  const missing = round.missing_parts.length ? h("small", { class: "trouble" }, `without part ${round.missing_parts.join(", ")}`) : null;
  return h("tr", {},
    h("th", { scope: "row" }, String(round.round), missing),
    h("td", {}, shareText(round.accuracy)), h("td", {}, lossText(round.loss)), h("td", {}, secondsText(took)),
    h("td", { class: "stages", title: tip }, s("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", role: "img", "aria-label": tip }, bars)));
}

export function incidentsSection(history) {
  const newest = history.incidents.slice(-INCIDENTS).reverse();
  if (!newest.length) return [];
  return [
    h("h2", {}, "Incidents"),
    h("ol", { class: "incidents" }, newest.map((one) =>
      h("li", {}, h("time", {}, clockText(one.seconds)), h("b", {}, one.kind.replace("refused:", "refused, ")),
        h("span", {}, one.node && h("em", {}, one.node), one.part >= 0 && ` part ${one.part}`, (one.node || one.part >= 0) && ": ", one.text)))),
  ];
}

export function standingsTable(status, search) {
  const rows = status.standings.length ? status.standings : [];
  if (!rows.length) return null;
  const heads = ["", "structure", "rounds", "accuracy", "loss", "parameters", "MFLOP", "µs/sample"];
  return h("div", { class: "wide" },
    h("table", { class: "standings" },
      h("thead", {}, h("tr", {}, heads.map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, rows.slice(0, STANDINGS).map((one, k) =>
        h("tr", { class: one.on_front ? "front" : null },
          h("td", {}, String(k + 1)),
          h("th", { scope: "row" }, h("code", {}, one.structure), one.on_front && h("small", {}, "best for its cost")),
          [String(one.round), shareText(one.accuracy), lossText(one.loss), countText(one.parameters), digits(one.flops / 1e6, 3), one.seconds_per_sample ? digits(1e6 * one.seconds_per_sample, 3) : "-"].map((text) => h("td", {}, text)))))),
    search && h("p", { class: "note" }, `A structure is named by its gates, 1 for on, in this order: ${search.gates.join(", ")}.`));
}
