"use strict";
const PATHS = {image_volume: "Image-Volume clone", native: "native clone", cache: "cache clone", download: "download", unknown: "unknown"};
const HOURS = 24;

function svg(tag, options, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(options)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
function label(text, options) { const made = svg("text", options); made.textContent = text; return made; }
function hint(text) { const made = svg("title", {}); made.textContent = plain(text); return made; }
// A circle is a clone, a square a download, a diamond what nobody can tell
function mark(kind, x, y, text) {
  const at = {class: `path-${kind}`};
  if (kind === "download") return svg("rect", {x: x - 4, y: y - 4, width: 8, height: 8, ...at}, hint(text));
  if (kind === "unknown") return svg("path", {d: `M${x} ${y - 5}l5 5l-5 5l-5 -5z`, ...at}, hint(text));
  return svg("circle", {cx: x, cy: y, r: 4, ...at}, hint(text));
}
function plot(node, points, told) {
  if (!points.length) { fill(node, [dim("Nothing to show yet.")]); return; }
  const width = Math.max(240, node.clientWidth), height = 130, left = 38, floor = height - 18;
  const most = Math.max(...points.map((point) => point.seconds), 0.1), low = Math.min(0.1, ...points.map((point) => Math.max(point.seconds, 0.01)));
  const y = (seconds) => floor - (Math.log(Math.max(seconds, low) / low) / Math.log(Math.max(most / low, 1.5))) * (floor - 12);
  const x = (index) => left + 8 + (points.length < 2 ? 0.5 : index / (points.length - 1)) * (width - left - 20);
  const made = svg("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": told(points)});
  for (let tick = 10 ** Math.ceil(Math.log10(low)); tick <= most; tick *= 10) {
    made.append(svg("line", {class: "grid", x1: left, x2: width, y1: y(tick), y2: y(tick)}),
      label(`${tick >= 1 ? Math.round(tick) : tick.toFixed(1)} s`, {x: left - 5, y: y(tick) + 4, "text-anchor": "end"}));
  }
  points.forEach((point, index) => made.append(mark(point.kind, x(index), y(point.seconds), `${point.target}: ${span(point.seconds)}`)));
  fill(node, [made, el("p", {class: "small dim", text: told(points)})]);
}
// A column for each of the last hours, the present one at the right
function stacked(node, hours, now) {
  const total = hours.reduce((sum, row) => sum + row[4], 0);
  if (!total) { fill(node, [dim("No volume was made of an image in the last 24 hours.")]); return; }
  const width = Math.max(240, node.clientWidth), height = 130, left = 30, floor = height - 18, step = (width - left) / HOURS;
  const first = Math.floor(now / 3600) - HOURS + 1, columns = new Map();
  for (const [hour, , path, , count] of hours) {
    const column = columns.get(hour / 3600) || {};
    column[path] = (column[path] || 0) + count;
    columns.set(hour / 3600, column);
  }
  const most = Math.max(...[...columns.values()].map((column) => Object.values(column).reduce((a, b) => a + b, 0)));
  const y = (count) => floor - count / most * (floor - 10);
  const made = svg("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${many(total, "volume")} in the last 24 hours, by hour; the table has the sums`},
    svg("line", {class: "grid", x1: left, x2: width, y1: y(most), y2: y(most)}), svg("line", {class: "grid", x1: left, x2: width, y1: floor, y2: floor}),
    label(String(most), {x: left - 5, y: y(most) + 4, "text-anchor": "end"}), label("0", {x: left - 5, y: floor + 4, "text-anchor": "end"}),
    label("24 h ago", {x: left, y: height - 3}), label("now", {x: width, y: height - 3, "text-anchor": "end"}));
  for (const [hour, column] of columns) {
    let below = 0;
    for (const path of Object.keys(PATHS).filter((one) => column[one])) {
      const top = y(below + column[path]), at = new Date(hour * 3600000).toLocaleTimeString([], {hour: "2-digit", minute: "2-digit"});
      made.append(svg("rect", {class: `path-${path}`, x: left + (hour - first) * step + 1, y: top, width: Math.max(2, step - 2), height: Math.max(1, y(below) - top - 0.5)},
        hint(`${at}: ${column[path]} ${PATHS[path]}`)));
      below += column[path];
    }
  }
  fill(node, [made]);
}
function median(values) { const sorted = [...values].sort((a, b) => a - b); return sorted[Math.floor(sorted.length / 2)]; }
