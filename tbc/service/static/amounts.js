// Amounts are BigInt from the wire to the screen: no digit is lost above 2^53.

const NANO = 1_000_000_000n;
const AMOUNTS = new Set([
  "allocated", "consumed", "held", "remaining", "min_reserve", "spare", "debt", "lent", "borrowed", "amount",
  "requested", "treasury", "siblings", "ancestors", "available", "when_idle", "shortfall", "unmet", "used",
]);
// A string, or an integer that a double may not hold.
const TOKEN = /"(?:[^"\\]|\\.)*"|-?\d{16,}(?![\d.eE])/g;

/** Read JSON; what is an amount by its name is a BigInt. */
export function parse(text) {
  const quoted = text.replace(TOKEN, (found) => (found[0] === '"' ? found : `"${found}"`));
  return JSON.parse(quoted, (name, value) => {
    const isAmount = AMOUNTS.has(name) && (typeof value === "number" || typeof value === "string");
    return isAmount ? BigInt(value) : value;
  });
}

const grouped = (digits) => digits.replace(/\B(?=(\d{3})+$)/g, ",");

/** Every digit of an amount, without its unit: "1,500", "$0.05". */
export function exact(axis, amount) {
  const size = amount < 0n ? -amount : amount;
  const sign = amount < 0n ? "-" : "";
  if (axis !== "usd") return sign + grouped(String(size));
  const decimals = String(size % NANO).padStart(9, "0").replace(/0+$/, "");
  return `${sign}$${grouped(String(size / NANO))}.${decimals.padEnd(decimals.length > 2 ? 4 : 2, "0")}`;
}

/** The same with its unit: "1,500 tokens", "1 call". */
export function inWords(axis, amount) {
  if (axis === "usd") return exact(axis, amount);
  return `${exact(axis, amount)} ${amount === 1n ? axis.slice(0, -1) : axis}`;
}

const STEPS = [[10n ** 18n, "E"], [10n ** 15n, "P"], [10n ** 12n, "T"], [10n ** 9n, "B"], [10n ** 6n, "M"], [1n, ""]];

/** A few digits, for an axis or a tile; "~" says that it is rounded. */
export function short(axis, amount) {
  const text = exact(axis, amount);
  if (text.length <= 9) return text;
  const size = amount < 0n ? -amount : amount;
  const [unit, mark] = axis === "usd" ? [NANO, "$"] : [1n, ""];
  const sign = (amount < 0n ? "-" : "") + mark;
  if (axis === "usd" && size < 100n * NANO) {
    const rounded = (size + 50_000n) / 100_000n; // $0.0001
    if (rounded === 0n) return `${sign.replace("$", "")}<$0.0001`;
    const about = rounded * 100_000n === size ? "" : "~";
    return `${about}${sign}${rounded / 10_000n}.${String(rounded % 10_000n).padStart(4, "0")}`;
  }
  const [scale, letter] = STEPS.find(([each]) => size >= each * unit);
  const whole = scale * unit;
  const rounded = (size * 200n + whole) / (whole * 2n);
  const about = rounded * whole === size * 100n ? "" : "~";
  const decimals = `.${String(rounded % 100n).padStart(2, "0")}`;
  const shown = mark && !letter ? decimals : decimals.replace(/\.?0+$/, "");
  return `${about}${sign}${grouped(String(rounded / 100n))}${shown}${letter}`;
}

/** How many of 1,000 parts of `whole` a part is; for widths only. */
export function permille(part, whole) {
  return whole > 0n ? Number((part * 10_000n) / whole) / 10 : 0;
}

/** A share in words: "45 %"; never 0 % of something or 100 % of less than all. */
export function percent(part, whole) {
  if (whole <= 0n) return "none";
  const found = (part * 100n) / whole;
  return part > 0n && found === 0n ? "under 1 %" : `${grouped(String(found))} %`;
}
