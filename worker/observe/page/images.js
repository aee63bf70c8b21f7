"use strict";
const SPARE = 30;  // rows above and below those in sight, so that scrolling finds them there
const EVERY = 5000;  // between two looks at the images when some have changed
// The worker sorts and filters; here are only the images in sight, by their number
let grid = {targets: [], total: 0, found: 0, revision: -1}, rows = new Map(), loads = 0, looking = false, again = false, drawn = "";

function filters() { return `&text=${encodeURIComponent($("filter").value.trim())}&state=${encodeURIComponent($("state").value)}`; }
// The images to draw, from number `first` to before `end`: those in sight and some more
function sight() {
  const body = $("images").tBodies[0], style = getComputedStyle($("images"));
  const height = parseFloat(style.getPropertyValue("--row")) * parseFloat(getComputedStyle(document.documentElement).fontSize);
  const above = Math.floor(-body.getBoundingClientRect().top / height);
  // In steps, so that most of the scrolling draws nothing
  const many = Math.ceil(innerHeight / height) + 2 * SPARE + 10, wanted = Math.min(above - SPARE, grid.found - many);
  const first = Math.max(0, Math.floor(wanted / 10) * 10);
  return {first, end: first + many + 10, height};
}
function lacking() {
  const {first, end} = sight();
  for (let number = first; number < Math.min(end, grid.found); number++) if (!rows.has(number)) return true;
  return false;
}
// Ask for the images in sight, until they are there; one question at a time
async function look() {
  if (looking) { again = true; return; }
  looking = true;
  try {
    do {
      again = false;
      const {first, end} = sight(), asked = filters();
      const answer = await ask(`images.json?from=${first}&count=${end - first}${asked}`);
      if (asked !== filters()) { again = true; continue; }
      if (answer.revision !== grid.revision || answer.found !== grid.found || asked !== grid.asked) rows = new Map();
      // One that went in this moment leaves an empty row
      for (let number = answer.start; number < Math.min(end, answer.found); number++) rows.set(number, null);
      answer.images.forEach((image, index) => rows.set(answer.start + index, image));
      grid = {...answer, asked};
      loads++;
      showImages();
    } while (again || lacking());
  } finally { looking = false; }
}
function lookAgain() { look().catch(() => {}); }  // The next tick says that there is no answer
function showImages() {
  fill($("images").tHead, [el("tr", {}, el("th", {scope: "col", text: "Image"}), el("th", {scope: "col", class: "number optional size", text: "Size"}),
    ...grid.targets.map((name) => el("th", {scope: "col", class: "cell", text: name, title: name})), el("th", {scope: "col", class: "optional", text: "Why not"}))]);
  $("images").setAttribute("aria-rowcount", String(grid.found + 1));
  $("rest").textContent = grid.total ? `${grid.found} of ${grid.total} images` : "No images seen yet: the first resync lists them.";
  draw();
}
function draw() {
  const body = $("images").tBodies[0], {first, height, ...wanted} = sight(), end = Math.min(grid.found, wanted.end);
  if (lacking()) lookAgain();
  if (drawn === `${first} ${end} ${height} ${loads}`) return;
  drawn = `${first} ${end} ${height} ${loads}`;
  const focused = body.contains(document.activeElement) ? document.activeElement.dataset.id : "";
  const shown = Array.from({length: Math.max(0, end - first)}, (_, index) => rowOf(rows.get(first + index), first + index));
  fill(body, [gap(first * height), ...shown, gap((grid.found - end) * height)]);
  if (focused) [...body.querySelectorAll("button")].find((one) => one.dataset.id === focused)?.focus({preventScroll: true});
}
function gap(height) {
  const made = el("tr", {class: "gap", "aria-hidden": "true"}, el("td", {colspan: grid.targets.length + 3}));
  made.style.height = `${Math.max(0, height)}px`;
  made.hidden = height <= 0;
  return made;
}
function rowOf(image, index) {
  if (!image) return el("tr", {class: "image", "aria-rowindex": index + 2}, el("td", {class: "dim", colspan: grid.targets.length + 3, text: "…"}));
  const [id, name, size, cells] = image;
  const why = [...new Set(cells.filter((cell) => cell[0] !== "warm" && cell[1]).map((cell) => cell[1]))].join("; ");
  const head = el("button", {type: "button", "data-id": id, "aria-haspopup": "dialog"}, ...(name ? [el("span", {class: "head", text: name}), " "] : []),
    el("span", {class: name ? "mono dim" : "mono head", text: id}));
  return el("tr", {class: "image", "aria-rowindex": index + 2}, el("td", {}, head), el("td", {class: "number small optional", text: gib(size)}),
    ...cells.map((cell) => el("td", {class: "cell"}, chip(cell[0], cell[1]))), el("td", {class: "small dim optional", title: why, text: why}));
}
function showDetail(id) {
  const [, name, size, cells] = [...rows.values()].find((image) => image && image[0] === id);
  $("d-name").textContent = plain(name || "Image");
  fill($("d-body"), [el("p", {class: "mono", text: id}), el("p", {class: "small dim", text: gib(size)}), ...cells.map(([state, why], index) =>
    el("div", {class: "job"}, chip(state, why), el("strong", {text: ` ${grid.targets[index]}: ${state}`}),
      el("div", {class: "small", text: why || (STATES[state] || ["", ""])[1]}))), el("p")]);
  $("detail").showModal();
}
$("filter").addEventListener("input", lookAgain);
$("state").addEventListener("input", lookAgain);
$("images").addEventListener("click", (event) => { const row = event.target.closest("tr.image"); if (row?.querySelector("button")) showDetail(row.querySelector("button").dataset.id); });
$("d-close").addEventListener("click", () => $("detail").close());
addEventListener("scroll", () => requestAnimationFrame(draw), {passive: true});
addEventListener("resize", () => requestAnimationFrame(draw));
