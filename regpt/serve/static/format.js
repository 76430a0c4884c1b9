// Numbers for people, as regpt's reports write them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
export const NONE = "—";

export function count(value) {
  return value === null || value === undefined ? NONE : whole.format(value);
}

export function short(value) {
  if (value === null || value === undefined) return NONE;
  for (const [size, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= 0.9995 * size) return `${Number((value / size).toPrecision(3))} ${unit}`;
  }
  return String(Number(value.toPrecision(3)));
}

export function withError(value, error) {
  if (value === null || value === undefined) return NONE;
  return value.toFixed(4) + (error ? ` ± ${error.toFixed(4)}` : "");
}

export function scientific(value) {
  if (value === null || value === undefined) return NONE;
  if (value === 0 || (Math.abs(value) >= 0.01 && Math.abs(value) < 1e5)) return String(Number(value.toPrecision(3)));
  return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined || !(seconds < 3155760000)) return NONE;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const units = [[86400, "d", 3600, "h"], [3600, "h", 60, "min"], [60, "min", 1, "s"]];
  const [large, largeName, small, smallName] = units.find(([size]) => seconds >= size);
  const rounded = Math.round(seconds / small) * small;
  const rest = Math.round((rounded % large) / small);
  return `${count(Math.floor(rounded / large))} ${largeName}` + (rest ? ` ${rest} ${smallName}` : "");
}

export function clock(at) {
  const date = new Date(at * 1000);
  return Number.isNaN(date.getTime()) ? NONE : date.toLocaleString("sv").slice(0, 16);
}

export function ago(at) {
  const seconds = Date.now() / 1000 - at;
  return seconds < 5 ? "now" : `${duration(seconds)} ago`;
}
