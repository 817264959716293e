// The pool as the journal says: a report, and the lines after it added up. Everything that is kept is bounded.

import { inWords } from "./amounts.js";

const LINES = 5_000; // of the journal, for the log and for one agent's timeline
const NOTICES = 1_000; // refusals and other news that are no lines
const PAIRS = 2_000; // lender and borrower
const LEVELS = 64; // priorities with unmet demand
const POINTS = 400; // of the timeline
export const OTHERS = "(others)";
export const AXES = ["tokens", "usd", "calls"];
const TERMS = new Set(["opening", "register", "replace", "close"]); // what changes more than numbers
const MOVES = new Set(["draw", "loan", "cover", "rebalance", "hand_down"]);
const SPENDING = new Set(["hold", "extend", "settle", "late_settle", "void", "expire", "usage", "report"]);

/** What has become of an allocation: spent + held + reserve + free = allocated + owed. */
export function shareOf(account) {
  if (account.allocated === null) {
    return { spent: account.consumed, held: account.held, reserve: 0n, free: 0n, owed: 0n, allocated: null };
  }
  const remaining = account.allocated - account.consumed - account.held;
  const left = remaining > 0n ? remaining : 0n;
  const reserve = account.min_reserve < left ? account.min_reserve : left;
  const owed = remaining < 0n ? -remaining : 0n;
  return {
    spent: account.consumed, held: account.held, reserve, free: left - reserve, owed, allocated: account.allocated,
  };
}

/** The last `most` of what is pushed, oldest first. */
class Last {
  constructor(most) {
    this.most = most;
    this.all = [];
  }

  push(each) {
    this.all.push(each);
    if (this.all.length > this.most * 1.25) this.all.splice(0, this.all.length - this.most);
  }
}

/** Points of a curve that may grow for ever: when there are too many, every second one goes. */
export class Curve {
  constructor() {
    this.points = []; // [seconds, spent, cap or null]
    this.step = 0;
  }

  add(at, spent, cap) {
    const points = this.points;
    const before = points.at(-2);
    if (before && at - before[0] < this.step) points.pop();
    points.push([at, spent, cap]);
    if (points.length > POINTS) {
      this.points = points.filter((_, place) => place % 2 === 0 || place === points.length - 1);
      this.step = (at - points[0][0]) / POINTS;
    }
  }
}

const kindOf = (kind) => (MOVES.has(kind) || kind === "return" ? "move" : SPENDING.has(kind) ? "spend" : "terms");

export class Pool {
  constructor() {
    this.clear();
  }

  clear() {
    this.name = this.mode = "";
    this.seq = 0; // the last line that was taken in
    this.booked = 0; // the line that the report is of: later ones are added to its accounts
    this.at = 0;
    this.skew = 0;
    this.openHolds = 0;
    this.axes = ["tokens"];
    this.agents = new Map();
    this.lines = new Last(LINES);
    this.notices = new Last(NOTICES);
    this.since = 0; // the line after which everything is known
    this.known = new Set(); // the last refusals
    this.late = []; // those that were not told when they happened: lines from before them may come yet
    this.refused = 0; // since the page was opened
    this.recalled = 0; // before
    this.nth = 0; // the last notice
    this.missed = 0;
    this.loans = Object.fromEntries(AXES.map((axis) => [axis, new Map()]));
    this.unmet = Object.fromEntries(AXES.map((axis) => [axis, new Map()]));
    this.curves = Object.fromEntries(AXES.map((axis) => [axis, new Curve()]));
    this.totals = Object.fromEntries(AXES.map((axis) => [axis, { spent: 0n, cap: null }]));
    this.outdated = true; // the report must be read again
  }

  /** The server's time, in seconds. */
  now() {
    return Date.now() / 1000 + this.skew;
  }

  /**
   * Take in a report, and again the lines after it that are known already, and the gates that have moved since it
   * was asked for: after notice `nth`.
   */
  take(report, nth = this.nth) {
    this.name = report.pool;
    this.mode = report.mode;
    this.axes = report.axes;
    this.openHolds = report.open_holds;
    this.skew = report.at - Date.now() / 1000;
    this.agents = new Map(report.agents.map((agent, order) => [agent.agent_name, { ...agent, order }]));
    this.outdated = false;
    this.booked = report.seq;
    for (const line of this.lines.all) this.book(line);
    for (const each of this.notices.all) if (each.kind === "gate" && each.nth > nth) this.move(each.gate);
    if (report.seq <= this.seq) for (const axis of AXES) this.sum(axis); // else the lines up to there are to come
  }

  /** Take in the lines before a report, so that curves, loans and the log begin earlier than the page. */
  remember(lines, report) {
    this.seq = report.seq;
    this.at = report.at;
    for (const axis of AXES) this.sum(axis);
    this.since = lines.length ? lines[0].seq - 1 : report.seq;
    const before = Object.fromEntries(AXES.map((axis) => [axis, { ...this.totals[axis] }]));
    for (const line of lines) {
      const total = before[line.axis];
      total.spent -= line.consumed;
      if (line.peer === null && total.cap !== null) total.cap -= line.allocated;
    }
    for (const line of lines) {
      this.lines.push(line);
      this.lend(line);
      const total = before[line.axis];
      total.spent += line.consumed;
      if (line.peer === null && total.cap !== null) total.cap += line.allocated;
      this.curves[line.axis].add(line.at, total.spent, total.cap);
    }
    for (const axis of report.axes) this.curves[axis].add(report.at, this.totals[axis].spent, this.totals[axis].cap);
  }

  /** Take in those of the last refusals that are not known: from before the page was opened, or while it was away. */
  recall(refusals) {
    const lines = this.lines.all;
    let place = 0;
    for (const each of refusals.filter((one) => this.isNews(one))) {
      while (place < lines.length && lines[place].at <= each.at) place += 1;
      const seq = place > 0 ? lines[place - 1].seq : this.since;
      const lacks = Object.entries(each.unmet).map(([axis, short]) => ({ axis, short: BigInt(short) }));
      const found = { at: each.at, ...this.refusal(each, lacks), seq };
      this.notices.push(found);
      this.late.push(found);
    }
  }

  /** Whether a refusal is not known yet; then it is. */
  isNews({ at, agent_name: name, axis, requested }) {
    const key = `${at} ${axis} ${requested} ${name}`;
    if (this.known.has(key)) return false;
    this.known.add(key);
    if (this.known.size > NOTICES) this.known.delete(this.known.values().next().value);
    return true;
  }

  /** Take in the next line. */
  add(line) {
    if (line.seq <= this.seq) return;
    this.seq = line.seq;
    this.at = line.at;
    this.late = this.late.filter((each) => each.at >= line.at);
    for (const each of this.late) each.seq = line.seq;
    this.lines.push(line);
    this.lend(line);
    this.book(line);
    const total = this.totals[line.axis];
    total.spent += line.consumed;
    if (line.peer === null && total.cap !== null) total.cap += line.allocated;
    this.curves[line.axis].add(line.at, total.spent, total.cap);
    if (TERMS.has(line.kind)) this.outdated = true;
  }

  book(line) {
    if (line.seq <= this.booked) return;
    const own = this.agents.get(line.agent_name)?.accounts[line.axis];
    if (own === undefined) {
      this.outdated = true;
      return;
    }
    own.consumed += line.consumed;
    own.held += line.held;
    if (own.allocated !== null) own.allocated += line.allocated;
    const peer = line.peer === null ? null : this.agents.get(line.peer)?.accounts[line.axis];
    if (peer && peer.allocated !== null) peer.allocated -= line.allocated;
    if (line.axis === "tokens") {
      if (line.kind === "hold") this.openHolds += 1;
      if (line.kind === "settle" || line.kind === "void" || line.kind === "expire") this.openHolds -= 1;
    }
  }

  lend(line) {
    const back = line.kind === "return";
    if ((!back && !MOVES.has(line.kind)) || line.peer === null) return;
    const [lender, borrower] = back ? [line.agent_name, line.peer] : [line.peer, line.agent_name];
    const pairs = this.loans[line.axis];
    const pair = this.pairOf(pairs, lender, borrower);
    if (back) pair.back += line.allocated;
    else pair.lent += line.allocated;
    if (pairs.size > PAIRS) this.fold(pairs);
  }

  pairOf(pairs, lender, borrower) {
    const key = JSON.stringify([lender, borrower]);
    let pair = pairs.get(key);
    if (pair === undefined) pairs.set(key, (pair = { lender, borrower, lent: 0n, back: 0n }));
    return pair;
  }

  /** Keep the half of the pairs that moved most; the others become one. */
  fold(pairs) {
    const every = [...pairs].filter(([, pair]) => pair.lender !== OTHERS);
    every.sort(([, a], [, b]) => (a.lent - a.back < b.lent - b.back ? -1 : 1));
    const rest = this.pairOf(pairs, OTHERS, OTHERS);
    for (const [key, pair] of every.slice(0, PAIRS / 2)) {
      rest.lent += pair.lent;
      rest.back += pair.back;
      pairs.delete(key);
    }
  }

  /** Take in news that is no line of the journal. */
  notice(name, data) {
    const at = this.now();
    if (name === "refused") {
      if (!this.isNews(data)) return;
      const lacks = [data, ...data.others].filter((each) => each.unmet > 0n).map(({ axis, unmet: short }) => ({ axis, short }));
      this.notices.push({ at: data.at, ...this.refusal(data, lacks), seq: this.seq });
    } else if (name === "gate") {
      this.move(data);
      this.notices.push({ at, nth: (this.nth += 1), kind: "gate", gate: data, agent_name: data.agent_name, seq: this.seq });
    } else if (name === "threshold") {
      this.notices.push({ at, nth: (this.nth += 1), kind: "threshold", threshold: data, agent_name: null, seq: this.seq });
    } else if (name === "missed") {
      this.missed += data.notices;
    }
  }

  move(gate) {
    const agent = this.agents.get(gate.agent_name);
    if (agent) agent.gate_closed = gate.closed;
  }

  refusal(decision, lacks) {
    const { agent_name } = decision;
    this.refused += 1;
    const priority = this.agents.get(agent_name)?.priority ?? null;
    for (const { axis, short } of lacks) this.lack(axis, priority, short);
    return { nth: (this.nth += 1), kind: "refused", decision, lacks, priority, agent_name };
  }

  lack(axis, priority, short) {
    const levels = this.unmet[axis];
    const key = priority === null || (levels.size >= LEVELS && !levels.has(priority)) ? OTHERS : priority;
    const level = levels.get(key) ?? { priority: key, refusals: 0, short: 0n };
    level.refusals += 1;
    level.short += short;
    levels.set(key, level);
  }

  sum(axis) {
    const total = { spent: 0n, cap: null };
    for (const agent of this.agents.values()) {
      const account = agent.accounts[axis];
      if (!account) continue;
      total.spent += account.consumed;
      if (account.allocated !== null) total.cap = (total.cap ?? 0n) + account.allocated;
    }
    this.totals[axis] = total;
  }

  // -- what is shown -----------------------------------------------------------------------------------

  /** The shares of all accounts with a cap added up, and what was spent without one. */
  shares(axis, matches) {
    const sum = { spent: 0n, held: 0n, reserve: 0n, free: 0n, owed: 0n, allocated: 0n, uncapped: 0n, agents: 0 };
    for (const agent of this.agents.values()) {
      if (!matches(agent.agent_name)) continue;
      if (agent.parent !== null && !agent.closed) sum.agents += 1;
      const account = agent.accounts[axis];
      if (!account) continue;
      if (account.allocated === null) {
        sum.uncapped += account.consumed;
        continue;
      }
      const share = shareOf(account);
      for (const name of ["spent", "held", "reserve", "free", "owed", "allocated"]) sum[name] += share[name];
    }
    return sum;
  }

  /** The curve of some agents, out of the lines that are kept; of everybody: since the beginning. */
  curve(axis, filter) {
    if (!filter.active) return this.curves[axis].points;
    let spent = 0n, cap = 0n, capped = false;
    for (const agent of this.agents.values()) {
      const account = agent.accounts[axis];
      if (!account || !filter.matches(agent.agent_name)) continue;
      spent += account.consumed;
      if (account.allocated !== null) {
        cap += account.allocated;
        capped = true;
      }
    }
    const points = [[this.at, spent, capped ? cap : null]];
    for (let place = this.lines.all.length - 1; place >= 0; place -= 1) {
      const line = this.lines.all[place];
      if (line.axis !== axis) continue;
      const own = filter.matches(line.agent_name);
      const peer = line.peer !== null && filter.matches(line.peer);
      if (!own && !peer) continue;
      if (points.at(-1)[0] > line.at) points.push([line.at, spent, capped ? cap : null]);
      if (own) {
        spent -= line.consumed;
        cap -= line.allocated;
      }
      if (peer) cap += line.allocated;
    }
    const curve = new Curve();
    for (const point of points.reverse()) curve.add(...point);
    return curve.points;
  }

  /** Unmet demand by priority, the highest first; of some agents: out of the refusals that are kept. */
  lacking(axis, filter) {
    let levels = this.unmet[axis];
    if (filter.active) {
      levels = new Map();
      for (const each of this.notices.all) {
        if (each.kind !== "refused" || !filter.matches(each.agent_name)) continue;
        for (const lack of each.lacks) {
          if (lack.axis !== axis) continue;
          const key = each.priority ?? OTHERS;
          const level = levels.get(key) ?? { priority: key, refusals: 0, short: 0n };
          level.refusals += 1;
          level.short += lack.short;
          levels.set(key, level);
        }
      }
    }
    const rank = (level) => (level.priority === OTHERS ? -1 : level.priority);
    return [...levels.values()].sort((a, b) => rank(b) - rank(a));
  }

  /** The log, newest first. */
  log(axis, filter, kind) {
    const found = [];
    if (kind !== "refused") {
      for (const line of this.lines.all) {
        if (line.axis !== axis || (kind !== "all" && kindOf(line.kind) !== kind)) continue;
        if (filter.matches(line.agent_name) || (line.peer !== null && filter.matches(line.peer))) found.push(line);
      }
    }
    if (kind === "all" || kind === "refused") {
      for (const each of this.notices.all) {
        if (kind === "refused" && each.kind !== "refused") continue;
        if (each.agent_name === null ? !filter.active : filter.matches(each.agent_name)) found.push(each);
      }
    }
    return found.sort((a, b) => b.seq - a.seq || (b.nth ?? 0) - (a.nth ?? 0));
  }
}

const WORDS = {
  opening: "opening", register: "registered", replace: "new terms", top_up: "topped up", close: "closed",
  adjust: "adjusted", hold: "held", extend: "held more", settle: "settled", late_settle: "settled late",
  void: "voided", expire: "expired", usage: "spent", report: "lease reported", draw: "drew", loan: "borrowed",
  cover: "covered", rebalance: "rebalanced", hand_down: "handed down", return: "got back",
  refused: "REFUSED", gate: "gate", threshold: "threshold",
};

/** What happened, how much, and why: [word, amount or null, reason]. */
export function told(each, axis) {
  const word = WORDS[each.kind] ?? each.kind;
  if (each.kind === "refused") {
    const { decision } = each;
    const would = decision.mode === "audit" ? "would be refused" : "REFUSED";
    return [would, inWords(decision.axis, decision.requested), decision.reason];
  }
  if (each.kind === "gate") {
    const sure = each.gate.confidence === null ? "confidence forgotten" : `confidence ${each.gate.confidence}`;
    return [each.gate.closed ? "gate closed" : "gate open", null, sure];
  }
  if (each.kind === "threshold") {
    const { threshold, axis: of, used, remaining } = each.threshold;
    return [word, inWords(of, used), `${Math.round(threshold * 100)} % of the cap is spent; ${inWords(of, remaining)} left`];
  }
  const why = [];
  let amount = each.consumed;
  if (each.kind === "hold" || each.kind === "extend") amount = each.held;
  else if (each.kind === "void" || each.kind === "expire") {
    amount = -each.held;
    why.push("set free");
  } else if (each.peer !== null || kindOf(each.kind) === "terms") amount = each.allocated;
  if (each.kind === "settle") why.push(`of ${inWords(axis, -each.held)} held`);
  if (each.peer !== null) why.push(`from ${each.peer}`);
  if (each.hold_id !== null) why.push(`hold ${each.hold_id}`);
  if (each.model !== null) why.push(`model ${each.model}`);
  if (each.note !== null) why.push(each.note);
  if (each.estimated) why.push("estimated");
  if (each.unpriced) why.push("price unknown");
  return [word, inWords(axis, amount), why.join(", ")];
}
