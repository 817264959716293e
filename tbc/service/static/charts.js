// The pictures. d3 computes, and elements are drawn without markup; each picture has a table beside it.

import { exact, inWords, permille, short } from "./amounts.js";
import { clipped, draw, fill, make, put, say, within } from "./dom.js";

const d3 = globalThis.d3;
const PARTS = ["spent", "held", "reserve", "free"];
const LINKS = 12;

/** A bar of four parts; made once in an element, and changed from then on. */
export function bar(root, share, axis) {
  let svg = root.firstElementChild;
  if (!svg || svg.localName !== "svg") {
    svg = draw("svg", { class: "bar", viewBox: "0 0 1000 10", preserveAspectRatio: "none", role: "img" });
    for (const part of PARTS) svg.append(draw("rect", { class: part, y: 0, height: 10 }));
    svg.append(draw("rect", { class: "cap", y: 0, height: 10, width: 6 }));
    fill(root, svg);
  }
  if (share.allocated === null) {
    put(svg, "aria-label", share.spent > 0n ? `no cap, ${inWords(axis, share.spent)} spent` : "no cap");
    for (const rect of svg.children) put(rect, "width", 0);
    put(svg, "data-cap", "none");
    return;
  }
  const whole = share.allocated + share.owed;
  let from = 0, sum = 0n;
  PARTS.forEach((part, place) => {
    sum += share[part];
    const to = permille(sum, whole);
    const rect = svg.children[place];
    put(rect, "x", from);
    put(rect, "width", Math.max(0, to - from));
    from = to;
  });
  const cap = svg.lastElementChild;
  put(cap, "width", share.owed > 0n ? 6 : 0);
  put(cap, "x", Math.max(0, permille(share.allocated, whole) - 3));
  put(svg, "data-cap", whole > 0n ? "yes" : "zero");
  const said = [...PARTS, "owed"].filter((part) => share[part] > 0n).map((part) => `${exact(axis, share[part])} ${part}`);
  put(svg, "aria-label", `${said.join(", ") || "nothing"} of ${inWords(axis, share.allocated)}`);
}

const widthOf = (root, least = 280) => Math.max(least, Math.floor(root.clientWidth));

function svgFor(root, width, height, label) {
  let svg = root.firstElementChild;
  if (!svg) fill(root, (svg = draw("svg", { role: "img" })));
  put(svg, "viewBox", `0 0 ${width} ${height}`);
  put(svg, "width", width);
  put(svg, "height", height);
  put(svg, "aria-label", label);
  return svg;
}

function nothing(root, text) {
  if (root.firstElementChild?.localName !== "p") fill(root, make("p", { class: "empty" }));
  say(root.firstElementChild, text);
}

/** What was spent over time, under the cap. */
export function timeline(root, points, axis) {
  if (points.length === 0) return nothing(root, "Nothing was spent yet.");
  if (root.firstElementChild?.localName === "p") fill(root);
  const width = widthOf(root), height = 220, left = 64, right = 14, top = 18, bottom = 26;
  const [first, last] = [points[0], points.at(-1)];
  const span = Math.max(1, last[0] - first[0]);
  const most = points.reduce((high, [, spent, cap]) => {
    const higher = cap !== null && cap > spent ? cap : spent;
    return higher > high ? higher : high;
  }, 1n);
  const ticks = d3.ticks(0, Number(most) * (axis === "usd" ? 1e-9 : 1), 4);
  const scale = axis === "usd" ? 1e9 : 1;
  const x = (at) => left + ((at - first[0]) / span) * (width - left - right);
  const y = (amount) => height - bottom - (Number(amount) / (Number(most) * 1.04)) * (height - top - bottom);
  const cap = last[2];
  const label = `Spent ${inWords(axis, last[1])}${cap === null ? ", no cap" : ` of a cap of ${inWords(axis, cap)}`}, `
    + `from ${within(first[0], span)} to ${within(last[0], span)}`;
  const svg = svgFor(root, width, height, label);
  const steps = points.length === 1 ? [first, [first[0] + span, ...first.slice(1)]] : points;
  const area = d3.area().curve(d3.curveStepAfter).x(([at]) => x(at)).y0(y(0n)).y1(([, spent]) => y(spent));
  const line = d3.line().curve(d3.curveStepAfter).x(([at]) => x(at)).y(([, spent]) => y(spent));
  const roof = d3.line().curve(d3.curveStepAfter).defined(([, , each]) => each !== null).x(([at]) => x(at)).y(([, , each]) => y(each));
  const inside = [];
  for (const tick of ticks) {
    const at = y(tick * scale);
    if (at < top - 4) continue;
    inside.push(draw("line", { class: "grid", x1: left, x2: width - right, y1: at, y2: at }));
    const words = short(axis, BigInt(Math.round(tick * scale))).replace("~", "");
    inside.push(draw("text", { class: "tick", x: left - 8, y: at + 4, "text-anchor": "end" }, words));
  }
  inside.push(draw("text", { class: "tick", x: left, y: height - 6 }, within(first[0], span)));
  inside.push(draw("text", { class: "tick", x: width - right, y: height - 6, "text-anchor": "end" }, within(last[0], span)));
  inside.push(draw("path", { class: "area", d: area(steps) ?? "" }), draw("path", { class: "line", d: line(steps) ?? "" }));
  inside.push(draw("path", { class: "roof", d: roof(steps) ?? "" }));
  if (cap !== null) {
    inside.push(draw("text", { class: "mark", x: width - right, y: y(cap) - 5, "text-anchor": "end" }, `cap ${short(axis, cap)}`));
  }
  const spentAt = Math.min(height - bottom - 6, Math.max(top + 10, y(last[1]) - 6));
  const clash = cap !== null && Math.abs(spentAt - y(cap) + 5) < 14;
  inside.push(draw("text", { class: "mark own", x: width - right, y: clash ? y(last[1]) + 16 : spentAt, "text-anchor": "end" },
    `spent ${short(axis, last[1])}`));
  fill(svg, ...inside);
}

/** Who lent to whom: lenders at the left, borrowers at the right; a ribbon is what was lent and not given back. */
export function sankey(root, pairs, axis) {
  const every = pairs.filter((pair) => pair.lent > pair.back);
  if (every.length === 0) {
    nothing(root, "Nothing is lent.");
    return 0;
  }
  if (root.firstElementChild?.localName === "p") fill(root);
  const shown = every.slice(0, LINKS);
  const names = [];
  const placeOf = (side, name) => {
    const found = names.findIndex((node) => node.side === side && node.name === name);
    return found >= 0 ? found : names.push({ side, name }) - 1;
  };
  const biggest = shown.reduce((high, pair) => (pair.lent - pair.back > high ? pair.lent - pair.back : high), 1n);
  const links = shown.map((pair) => ({
    source: placeOf("from", pair.lender),
    target: placeOf("to", pair.borrower),
    value: Math.max(0.002, Number(((pair.lent - pair.back) * 1_000_000n) / biggest) / 1_000_000),
    net: pair.lent - pair.back,
    pair,
  }));
  const most = Math.max(...["from", "to"].map((side) => names.filter((node) => node.side === side).length));
  const width = widthOf(root), height = Math.max(170, 44 * most + 40);
  const margin = Math.min(170, Math.floor(width * 0.3));
  const layout = d3.sankey().nodeWidth(10).nodePadding(most > 1 ? 26 : 0).nodeSort(null)
    .extent([[margin, 24], [width - margin, height - 22]]);
  const graph = layout({ nodes: names, links });
  const label = `${every.length} ${every.length === 1 ? "pair" : "pairs"}; the largest: ${shown[0].lender} lent ${shown[0].borrower} ${inWords(axis, links[0].net)}`;
  const svg = svgFor(root, width, height, label);
  const path = d3.sankeyLinkHorizontal();
  const letters = Math.max(6, Math.floor((margin - 14) / 7));
  const inside = [
    draw("text", { class: "tick", x: 0, y: 12 }, "lent by"),
    draw("text", { class: "tick", x: width, y: 12, "text-anchor": "end" }, "to"),
  ];
  for (const link of graph.links) {
    const title = draw("title", {}, `${link.pair.lender} lent ${link.pair.borrower} ${inWords(axis, link.net)}`);
    inside.push(draw("path", {
      class: "link", d: path(link), "stroke-width": Math.max(1.5, link.width),
      "data-amount": String(link.net), "data-from": link.pair.lender, "data-to": link.pair.borrower,
    }, title));
  }
  for (const node of graph.nodes) {
    const from = node.side === "from";
    const sum = links.filter((link) => link[from ? "source" : "target"] === node).reduce((all, link) => all + link.net, 0n);
    const tall = Math.max(2, node.y1 - node.y0), middle = (node.y0 + node.y1) / 2;
    const side = { x: from ? node.x0 - 6 : node.x1 + 6, "text-anchor": from ? "end" : "start" };
    inside.push(draw("rect", { class: "node", x: node.x0, y: node.y0, width: node.x1 - node.x0, height: tall }));
    inside.push(draw("text", { class: "name", y: middle, ...side }, clipped(node.name, letters), draw("title", {}, node.name)));
    inside.push(draw("text", { class: "tick", y: middle + 13, ...side }, short(axis, sum)));
  }
  fill(svg, ...inside);
  return every.length - shown.length;
}

/** A bar of one part, for a table. */
export function stroke(root, amount, most) {
  let svg = root.firstElementChild;
  if (!svg) {
    svg = draw("svg", { class: "bar", viewBox: "0 0 1000 10", preserveAspectRatio: "none", "aria-hidden": "true" });
    svg.append(draw("rect", { class: "unmet", x: 0, y: 0, height: 10 }));
    fill(root, svg);
  }
  put(svg.firstElementChild, "width", permille(amount, most));
}
