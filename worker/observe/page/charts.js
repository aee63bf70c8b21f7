"use strict";
function svg(tag, options) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(options)) made.setAttribute(name, value);
  return made;
}
function plot(node, points, label) {
  if (!points.length) { fill(node, [el("p", {class: "dim", text: "Nothing to show yet."})]); return; }
  const width = Math.max(240, node.clientWidth), height = 130, left = 38, floor = height - 18;
  const most = Math.max(...points.map((point) => point.seconds), 0.1), low = Math.min(0.1, ...points.map((point) => Math.max(point.seconds, 0.01)));
  const y = (seconds) => floor - (Math.log(Math.max(seconds, low) / low) / Math.log(Math.max(most / low, 1.5))) * (floor - 12);
  const x = (index) => left + 8 + (points.length < 2 ? 0.5 : index / (points.length - 1)) * (width - left - 20);
  const made = svg("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label(points)});
  for (let mark = 10 ** Math.ceil(Math.log10(low)); mark <= most; mark *= 10) {
    made.append(svg("line", {class: "grid", x1: left, x2: width, y1: y(mark), y2: y(mark)}));
    const text = svg("text", {x: left - 5, y: y(mark) + 4, "text-anchor": "end"});
    text.textContent = `${mark >= 1 ? Math.round(mark) : mark.toFixed(1)} s`;
    made.append(text);
  }
  points.forEach((point, index) => {
    const at = {fill: `var(--${point.good ? "warm" : "failed"})`};
    const dot = point.good ? svg("circle", {cx: x(index), cy: y(point.seconds), r: 4, ...at})
      : svg("rect", {x: x(index) - 4, y: y(point.seconds) - 4, width: 8, height: 8, ...at});
    const hint = svg("title", {});
    hint.textContent = `${point.target}: ${span(point.seconds)}`;
    dot.append(hint);
    made.append(dot);
  });
  fill(node, [made, el("p", {class: "small dim", text: label(points)})]);
}
function median(values) { const sorted = [...values].sort((a, b) => a - b); return sorted[Math.floor(sorted.length / 2)]; }
