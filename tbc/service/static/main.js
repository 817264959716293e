// The page: reads the pool, follows it, and draws what has changed a few times a second at most.

import { exact, inWords, percent, short } from "./amounts.js";
import { bar, sankey, stroke, timeline } from "./charts.js";
import { byId, clipped, clock, fill, make, moment, put, say } from "./dom.js";
import { Pool, shareOf, told } from "./pool.js";
import { PagedTable } from "./table.js";
import { AGAIN, Follower, Refused, ask, askText, token } from "./wire.js";

const DRAW_MS = 250;
const SUMMARY_MS = 10_000;
const REPORT_MS = 2_000;
const COUNTS_MS = 5_000;
const BACK = 5_000;
const PAGE = 1_000;
const RATE_S = 60;

const pool = new Pool();
const view = { axis: "tokens", order: "registered", kind: "all", paused: false, chosen: false };
const filter = { active: false, matches: () => true };
let loaded = false;
let follower = null;
let counted = new Map();

// -- drawing, now and then ---------------------------------------------------------------------------------

const drawing = { waiting: false, last: 0, count: 0 };

function changed() {
  if (drawing.waiting || view.paused) return;
  drawing.waiting = true;
  const wait = Math.max(0, drawing.last + DRAW_MS - performance.now());
  setTimeout(() => requestAnimationFrame(drawAll), wait);
}

function drawAll() {
  drawing.waiting = false;
  if (!loaded || view.paused) return;
  drawing.last = performance.now();
  drawing.count += 1;
  drawPool();
  drawAccounts();
  drawTime();
  drawLoans();
  drawUnmet();
  log.show(pool.log(view.axis, filter, view.kind));
  const from = pool.since > 0 ? ` Curves, loans and the log begin after line ${pool.since.toLocaleString("en")}.` : "";
  const lost = pool.missed ? ` ${pool.missed.toLocaleString("en")} refusals and other news came too fast to be shown.` : "";
  say(byId("as-of"), `As of line ${pool.seq.toLocaleString("en")} of the journal, ${moment(pool.at)}.${from}${lost}`);
  document.body.dataset.seq = pool.seq;
  document.body.dataset.draws = drawing.count;
  summarize();
}

function tile(name, text, title = null) {
  return make("div", {}, make("dt", {}, name), make("dd", { title }, text));
}

function drawPool() {
  say(byId("pool"), pool.name);
  document.title = `${pool.name}: budgets, live`;
  byId("mode").hidden = pool.mode !== "audit";
  say(byId("mode"), "audit: nothing is refused");
  for (const input of document.querySelectorAll("input[name=axis]")) {
    input.disabled = !pool.axes.includes(input.value);
  }
  const { axis } = view;
  const sum = pool.shares(axis, filter.matches);
  const amount = (name, value) => tile(name, short(axis, value), inWords(axis, value));
  const tiles = [amount("spent", sum.spent + sum.uncapped), amount("held", sum.held), amount("reserve", sum.reserve), amount("free", sum.free)];
  if (sum.owed > 0n) tiles.push(amount("owed", sum.owed));
  tiles.push(sum.allocated > 0n ? amount("cap", sum.allocated) : tile("cap", "none"));
  tiles.push(amount("last minute", rate()));
  if (!filter.active) tiles.push(tile("open holds", pool.openHolds.toLocaleString("en")));
  tiles.push(tile("agents", sum.agents.toLocaleString("en")));
  fill(byId("sums"), ...tiles);
  bar(byId("sum-bar"), sum.allocated > 0n ? sum : { ...sum, allocated: null }, axis);
}

/** What was spent in the last minute. */
function rate() {
  const since = pool.now() - RATE_S;
  const lines = pool.lines.all;
  let sum = 0n;
  for (let place = lines.length - 1; place >= 0 && lines[place].at >= since; place -= 1) {
    const line = lines[place];
    if (line.axis === view.axis && filter.matches(line.agent_name)) sum += line.consumed;
  }
  return sum;
}

const shareIn = (agent) => (agent.accounts[view.axis] ? shareOf(agent.accounts[view.axis]) : null);
const number = (name) => (_, row) => (row.share === null || row.share[name] === null ? "–" : exact(view.axis, row.share[name]));

const accounts = new PagedTable(byId("accounts"), {
  label: "Accounts",
  empty: "No agent has this name.",
  columns: [
    { label: "Agent", kind: "agent", show: showAgent },
    { label: "Priority", kind: "number", show: (_, row) => (row.agent.parent === null ? "–" : String(row.agent.priority)) },
    {
      label: "Bar", kind: "graph", show: (cell, row) => {
        if (row.share === null) return "";
        bar(cell, row.share, view.axis);
        return undefined;
      },
    },
    { label: "Spent", kind: "number", show: number("spent") },
    { label: "Held", kind: "number", show: number("held") },
    { label: "Reserve", kind: "number", show: number("reserve") },
    { label: "Free", kind: "number", show: number("free") },
    { label: "Owed", kind: "number owed", show: number("owed") },
    { label: "Allocated", kind: "number", show: (_, row) => (row.share === null ? "–" : row.share.allocated === null ? "no cap" : exact(view.axis, row.share.allocated)) },
  ],
});

function showAgent(cell, row) {
  const { agent } = row;
  let button = cell.querySelector("button");
  if (!button) {
    button = make("button", { type: "button", class: "name" });
    button.addEventListener("click", () => setFilter(`"${button.dataset.agent}"`));
    fill(cell, button, make("span", { class: "under" }));
  }
  button.dataset.agent = agent.agent_name;
  say(button, clipped(agent.agent_name, 40));
  put(button, "title", agent.agent_name);
  const notes = [];
  if (agent.parent !== null && agent.parent !== "(root)") notes.push(`under ${clipped(agent.parent, 24)}`);
  if (agent.closed) notes.push("closed");
  if (agent.gate_closed) notes.push("gate closed");
  say(cell.lastElementChild, notes.join(", "));
}

const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
const ORDERS = {
  registered: () => 0,
  spent: (a, b) => compare(b.share?.spent ?? -1n, a.share?.spent ?? -1n),
  used: (a, b) => compare(used(b.share), used(a.share)),
  priority: (a, b) => b.agent.priority - a.agent.priority,
  name: (a, b) => compare(a.agent.agent_name, b.agent.agent_name),
};

function used(share) {
  if (share === null || share.allocated === null) return -1n;
  return share.allocated > 0n ? ((share.spent + share.held) * 1_000_000n) / share.allocated : share.owed > 0n ? 2_000_000n : -1n;
}

function drawAccounts() {
  const rows = [];
  for (const agent of pool.agents.values()) {
    if (filter.matches(agent.agent_name)) rows.push({ agent, share: shareIn(agent) });
  }
  const by = ORDERS[view.order];
  rows.sort((a, b) => by(a, b) || a.agent.order - b.agent.order);
  accounts.show(rows);
}

const times = new PagedTable(byId("time-table"), {
  label: "Spend against the cap",
  empty: "Nothing was spent yet.",
  size: 10,
  columns: [
    { label: "Time", show: (_, row) => moment(row[0]) },
    { label: "Spent", kind: "number", show: (_, row) => exact(view.axis, row[1]) },
    { label: "Cap", kind: "number", show: (_, row) => (row[2] === null ? "no cap" : exact(view.axis, row[2])) },
  ],
});

function drawTime() {
  const points = pool.curve(view.axis, filter);
  timeline(byId("time"), points, view.axis);
  say(byId("time-note"), filter.active ? "Of the agents that the filter names." : "Of the whole pool.");
  if (isOpen("time-table")) times.show([...points].reverse());
}

const loans = new PagedTable(byId("loans-table"), {
  label: "Who lent to whom",
  empty: "Nothing was lent.",
  size: 10,
  columns: [
    { label: "Lender", show: (_, row) => row.lender },
    { label: "Borrower", show: (_, row) => row.borrower },
    { label: "Lent", kind: "number", show: (_, row) => exact(view.axis, row.lent) },
    { label: "Given back", kind: "number", show: (_, row) => exact(view.axis, row.back) },
    { label: "Not given back", kind: "number", show: (_, row) => exact(view.axis, row.lent > row.back ? row.lent - row.back : 0n) },
  ],
});

function drawLoans() {
  const pairs = [...pool.loans[view.axis].values()].filter((pair) => filter.matches(pair.lender) || filter.matches(pair.borrower));
  pairs.sort((a, b) => compare(b.lent - b.back, a.lent - a.back) || compare(b.lent, a.lent));
  const more = sankey(byId("loans"), pairs, view.axis);
  const note = "A ribbon is what was lent and not given back; “(root)” is the treasury.";
  say(byId("loans-note"), more ? `${note} ${more.toLocaleString("en")} smaller ones are in the table.` : note);
  if (isOpen("loans-table")) loans.show(pairs);
}

const isOpen = (id) => byId(id).closest("details").open;

const unmet = new PagedTable(byId("unmet"), {
  label: "Unmet demand by priority",
  empty: "Nothing was refused for want of budget.",
  size: 12,
  columns: [
    { label: "Priority", kind: "level", show: (_, row) => String(row.priority) },
    { label: "Share", kind: "graph", show: (cell, row) => stroke(cell, row.short, row.most) },
    { label: "Refusals", kind: "number", show: (_, row) => row.refusals.toLocaleString("en") },
    { label: "Unmet", kind: "number", show: (_, row) => exact(view.axis, row.short) },
  ],
});

function drawUnmet() {
  const levels = pool.lacking(view.axis, filter);
  const most = levels.reduce((high, level) => (level.short > high ? level.short : high), 1n);
  unmet.show(levels.map((level) => ({ ...level, most })));
  const before = [...counted].filter(([key]) => key.startsWith(`${view.axis} `)).map(([key, amount]) => {
    return `${key.slice(view.axis.length + 1)}: ${amount}`;
  });
  const ago = pool.recalled ? `, and of the last ${pool.recalled.toLocaleString("en")} refusals before` : "";
  const own = levels.length ? `Since this page was opened${ago}; a refusal asked again counts again.` : "";
  const all = before.length ? `Counted since the server started, by priority: ${before.join("; ")}.` : "";
  say(byId("unmet-note"), `${own} ${all}`.trim());
}

const log = new PagedTable(byId("log"), {
  label: "Decisions, newest first",
  empty: "Nothing has happened yet.",
  size: 25,
  columns: [
    { label: "Time", kind: "time", show: (_, each) => clock(each.at) },
    {
      label: "What", kind: "what", show: (cell, each) => {
        put(cell, "data-kind", each.kind);
        return told(each, view.axis)[0];
      },
    },
    { label: "Agent", kind: "agent", show: (cell, each) => {
      put(cell, "title", each.agent_name ?? "");
      return each.agent_name === null ? "the pool" : clipped(each.agent_name, 40);
    } },
    { label: "Amount", kind: "number", show: (_, each) => told(each, view.axis)[1] ?? "–" },
    { label: "Why", kind: "why", show: (_, each) => told(each, view.axis)[2] },
  ],
});

// -- what is said to those who do not see it ---------------------------------------------------------------

const speech = { last: -SUMMARY_MS, timer: null };

function summarize() {
  const wait = speech.last + SUMMARY_MS - performance.now();
  if (speech.timer !== null) return;
  speech.timer = setTimeout(() => {
    speech.timer = null;
    speech.last = performance.now();
    const sum = pool.shares(view.axis, filter.matches);
    const spent = sum.spent + sum.uncapped;
    const share = sum.allocated > 0n ? `, ${percent(sum.spent, sum.allocated)} of the cap` : "";
    const refused = pool.refused ? `, ${pool.refused} refused since this page was opened` : "";
    say(byId("summary"), `${inWords(view.axis, spent)} spent${share}, ${inWords(view.axis, sum.held)} held${refused}.`);
  }, Math.max(0, wait));
}

// -- reading -------------------------------------------------------------------------------------------------

async function loadAll() {
  const report = await ask("/v1/report");
  const lines = [];
  let since = Math.max(0, report.seq - BACK);
  while (since < report.seq) {
    const page = await ask(`/v1/entries?since=${since}&limit=${PAGE}`);
    lines.push(...page.entries.filter((line) => line.seq <= report.seq));
    if (page.next === null) break;
    since = page.next;
  }
  pool.clear();
  pool.take(report);
  pool.remember(lines, report);
  pool.recall((await ask("/v1/refusals")).refusals);
  [pool.recalled, pool.refused] = [pool.refused, 0];
  loaded = true;
  if (!view.chosen && report.axes.includes("usd") && pool.totals.tokens.cap === null) chooseAxis("usd");
}

async function readReport() {
  const { nth } = pool;
  pool.take(await ask("/v1/report"), nth);
}

/** Whether the journal goes on from what is known: a server that was started anew has another one. */
async function goesOn() {
  const last = pool.lines.all.at(-1);
  if (!loaded || last === undefined || last.seq !== pool.seq) return false;
  const { entries } = await ask(`/v1/entries?since=${last.seq - 1}&limit=1`);
  const found = entries[0];
  return ["seq", "at", "kind", "agent_name", "axis"].every((name) => found?.[name] === last[name]);
}

const refreshing = { timer: null, last: -REPORT_MS };

/** Read the report again, if an agent is new or has other terms. */
function refresh() {
  if (refreshing.timer !== null) return;
  const wait = Math.max(50, refreshing.last + REPORT_MS - performance.now());
  refreshing.timer = setTimeout(async () => {
    try {
      await readReport();
      changed();
    } catch {
      // the stream says that the server is away
    } finally {
      refreshing.last = performance.now();
      refreshing.timer = null;
      if (pool.outdated && byId("state").dataset.state === "live") refresh();
    }
  }, wait);
}

const counting = { timer: null, last: -COUNTS_MS };

/** Read what the server has counted of unmet demand. */
function count() {
  if (counting.timer !== null) return;
  counting.timer = setTimeout(async () => {
    try {
      const text = await askText("/metrics");
      counted = new Map();
      for (const [, axis, priority, amount] of text.matchAll(/^tbc_unmet_total\{axis="(\w+)",priority="([^"]*)"\} (\S+)$/gm)) {
        const words = axis === "usd" ? `about $${Number(amount)}` : `about ${Number(amount).toLocaleString("en")}`;
        counted.set(`${axis} ${priority}`, words);
      }
      changed();
    } catch {
      // the counts of this page stand for themselves
    } finally {
      counting.last = performance.now();
      counting.timer = null;
    }
  }, Math.max(0, counting.last + COUNTS_MS - performance.now()));
}

const reader = {
  async load() {
    if (!(await goesOn())) await loadAll();
    byId("door").hidden = true;
    byId("main").hidden = byId("controls").hidden = false;
    byId("forget").hidden = token.get() === null;
    count();
    changed();
    return pool.seq;
  },

  /** Read what is no line of the journal and may have happened before the stream was there. */
  async joined() {
    await readReport();
    pool.recall((await ask("/v1/refusals")).refusals);
    count();
    changed();
  },

  event(name, id, data) {
    if (name === "gap" || (name === "entry" && id > pool.seq + 1)) {
      loaded = false;
      return AGAIN;
    }
    if (name === "entry") pool.add(data);
    else pool.notice(name, data);
    if (name === "refused") count();
    if (pool.outdated) refresh();
    changed();
    return null;
  },

  state(what, why) {
    const words = { live: "Live", lost: "Connection lost", connecting: "Connecting" };
    put(byId("state"), "data-state", what);
    say(byId("state"), view.paused && what === "live" ? "Paused" : words[what]);
    const stale = byId("stale");
    stale.hidden = what !== "lost";
    const shown = loaded ? `What is shown is as of line ${pool.seq.toLocaleString("en")}, ${moment(pool.at)}.` : "";
    if (what === "lost") say(stale, `Connection lost. ${why} ${shown} Trying again.`);
  },

  locked(error) {
    const known = token.get() !== null;
    token.forget();
    loaded = false;
    byId("main").hidden = byId("controls").hidden = true;
    byId("door").hidden = false;
    put(byId("state"), "data-state", "locked");
    say(byId("state"), "Locked");
    say(byId("door-why"), known || error.status !== 401 ? error.message : "");
    byId("stale").hidden = true;
    byId("token").focus();
  },
};

function follow() {
  follower?.stop();
  follower = new Follower(reader);
  reader.state("connecting", "");
  follower.run();
}

// -- what the reader does ------------------------------------------------------------------------------------

function chooseAxis(axis) {
  view.axis = axis;
  for (const input of document.querySelectorAll("input[name=axis]")) input.checked = input.value === axis;
}

function setFilter(text) {
  byId("filter").value = text;
  const exactly = /^"(.+)"$/s.exec(text);
  const part = text.toLocaleLowerCase();
  filter.active = text !== "";
  filter.matches = exactly ? (name) => name === exactly[1] : (name) => name.toLocaleLowerCase().includes(part);
  for (const table of [accounts, log, loans, times, unmet]) table.first();
  now();
}

/** Draw what the reader has asked for, paused or not. */
function now() {
  const { paused } = view;
  view.paused = false;
  drawAll();
  view.paused = paused;
}

byId("controls").addEventListener("submit", (event) => event.preventDefault());
for (const input of document.querySelectorAll("input[name=axis]")) {
  input.addEventListener("change", () => {
    view.chosen = true;
    chooseAxis(input.value);
    now();
  });
}
byId("filter").addEventListener("input", (event) => setFilter(event.target.value));
byId("order").addEventListener("change", (event) => {
  view.order = event.target.value;
  accounts.first();
  now();
});
byId("log-kind").addEventListener("change", (event) => {
  view.kind = event.target.value;
  log.first();
  now();
});
byId("pause").addEventListener("click", () => {
  view.paused = !view.paused;
  put(byId("pause"), "aria-pressed", view.paused);
  if (byId("state").dataset.state === "live") say(byId("state"), view.paused ? "Paused" : "Live");
  changed();
});
byId("door-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token.set(byId("token").value.trim());
  byId("token").value = "";
  follow();
});
byId("forget").addEventListener("click", () => {
  follower?.stop();
  reader.locked(new Refused(401, { message: "The token is forgotten." }, 0));
});
for (const details of document.querySelectorAll("details")) details.addEventListener("toggle", now);
let resized = null;
addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(now, 100);
});

follow();
