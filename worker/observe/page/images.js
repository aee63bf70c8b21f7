"use strict";
const SPARE = 30;  // rows above and below those in sight, so that scrolling finds them there
const EVERY = 5000;  // between two looks at the images when some have changed
// The worker sorts and filters; here are only the images in sight, by their number
let grid = {targets: [], total: 0, found: 0, revision: -1}, rows = new Map(), loads = 0, looking = false, again = false, drawn = "", back = {}, poolsOf = {};

const CHOICES = {text: "filter", state: "state", target: "target", project: "project", reason: "reason", sort: "sort"};
function filters() { return Object.entries(CHOICES).map(([name, id]) => `&${name}=${encodeURIComponent($(id).value.trim())}`).join(""); }
function offerTargets(names) {
  const offered = [...$("target").options].slice(1).map((option) => option.value);
  if (offered.join("\n") === names.join("\n")) return;
  const chosen = $("target").value;
  $("target").replaceChildren($("target").options[0], ...names.map((name) => el("option", {value: name, text: name})));
  $("target").value = names.includes(chosen) ? chosen : "";
}
function choose(choice) {
  for (const [name, id] of Object.entries(CHOICES)) $(id).value = choice[name] || "";
  lookAgain();
}
// The images to draw, from number `first` to before `end`: those in sight and some more
function sight() {
  const body = $("images").tBodies[0], style = getComputedStyle($("images"));
  const height = parseFloat(style.getPropertyValue("--row")) * parseFloat(getComputedStyle(document.documentElement).fontSize);
  const above = Math.floor(-body.getBoundingClientRect().top / height);
  // In steps, so that most of the scrolling draws nothing
  const count = Math.ceil(innerHeight / height) + 2 * SPARE + 10, wanted = Math.min(above - SPARE, grid.found - count);
  const first = Math.max(0, Math.floor(wanted / 10) * 10);
  return {first, end: first + count + 10, height};
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
      answer.images.forEach((image, index) => rows.set(answer.start + index, [...image, answer.projects[index]]));
      grid = {...answer, asked};
      loads++;
      showImages();
    } while (again || lacking());
  } finally { looking = false; }
}
function lookAgain() { look().catch(() => {}); }  // The next tick says that there is no answer
function showImages() {
  $("images").tHead.replaceChildren(el("tr", {}, el("th", {scope: "col", text: "Image"}), el("th", {scope: "col", class: "number optional size", text: "Size"}),
    ...grid.targets.map((name) => el("th", {scope: "col", class: "cell", text: name, title: name})), el("th", {scope: "col", class: "optional", text: "Why not"})));
  $("images").setAttribute("aria-rowcount", String(grid.found + 1));
  say($("rest"), grid.total ? `${grid.found} of ${grid.total} images` : "No images seen yet: the first resync lists them.");
  $("clear").disabled = Object.values(CHOICES).every((id) => !$(id).value.trim());
  draw();
}
function draw() {
  const body = $("images").tBodies[0], {first, height, ...wanted} = sight(), end = Math.min(grid.found, wanted.end);
  if (lacking()) lookAgain();
  if (drawn === `${first} ${end} ${height} ${loads}`) return;
  drawn = `${first} ${end} ${height} ${loads}`;
  const focused = body.contains(document.activeElement) ? document.activeElement.dataset.id : "";
  const shown = Array.from({length: Math.max(0, end - first)}, (_, index) => rowOf(rows.get(first + index), first + index));
  body.replaceChildren(gap(first * height), ...shown, gap((grid.found - end) * height));
  if (focused) [...body.querySelectorAll("button")].find((one) => one.dataset.id === focused)?.focus({preventScroll: true});
}
// The columns in sight: more would take their share of the table's width
function columns() { return grid.targets.length + (matchMedia("(max-width: 800px)").matches ? 1 : 3); }
function gap(height) {
  const made = el("tr", {class: "gap", "aria-hidden": "true"}, el("td", {colspan: columns()}));
  made.style.height = `${Math.max(0, height)}px`;
  made.hidden = height <= 0;
  return made;
}
function rowOf(image, index) {
  if (!image) return el("tr", {class: "image", "aria-rowindex": index + 2}, el("td", {class: "dim", colspan: columns(), text: "…"}));
  const [id, name, size, cells] = image;
  const why = [...new Set(cells.filter((cell) => cell[0] !== "warm" && cell[1]).map((cell) => cell[1]))].join("; ");
  const head = el("button", {type: "button", "data-id": id, "aria-haspopup": "dialog"}, ...(name ? [el("span", {class: "head", text: name}), " "] : []),
    el("span", {class: name ? "mono dim" : "mono head", text: id}));
  return el("tr", {class: "image", "aria-rowindex": index + 2}, el("td", {}, head), el("td", {class: "number small optional", text: gib(size)}),
    ...cells.map((cell) => el("td", {class: "cell"}, chip(cell[0], cell[1]))), el("td", {class: "small dim optional", title: why, text: why}));
}
function volumeRow(volume, now) {
  const cell = (label, text, name = "") => el("td", {"data-label": label, class: name, text});
  return el("tr", {}, cell("Image-Volume", volume.id, "mono"), cell("GiB", volume.size, "number"), cell("Age", volume.created ? span(now - volume.created) : "–", "number"),
    cell("Last use", volume.used ? ago(now, volume.used) : "none known", "number"), cell("Pool", volume.pool || "–", "mono"), cell("Status", volume.status));
}
function volumeTable(volumes, now) {
  const head = ["Image-Volume", "GiB", "Age", "Last use", "Pool", "Status"];
  return el("table", {class: "cards"}, el("thead", {}, el("tr", {}, ...head.map((text, index) => el("th", {scope: "col", class: index > 0 && index < 4 ? "number" : "", text})))),
    el("tbody", {}, ...volumes.map((volume) => volumeRow(volume, now))));
}
function targetPart(image, {target, state, why}) {
  const own = image.volumes.filter((volume) => volume.target === target);
  return el("section", {class: "part"}, el("h3", {}, chip(state, why), ` ${target}: ${state}`), el("p", {class: "small", text: why || (STATES[state] || ["", ""])[1]}),
    ...(poolsOf[target]?.length > 1 ? [el("p", {class: "small dim", text: `Pools of the target: ${poolsOf[target].join(", ")}`})] : []),
    ...(own.length ? [volumeTable(own, present)] : [el("p", {class: "small dim", text: "No Image-Volume of this target."})]),
    command("explain", image.id, "--target", target));
}
function detail(image) {
  const known = new Set(image.targets.map((one) => one.target)), others = image.volumes.filter((volume) => !known.has(volume.target));
  return [el("p", {class: "small"}, [gib(image.size), image.project && `project ${image.project}`].filter(Boolean).join(", "), " ",
    ...(image.project ? [el("button", {type: "button", class: "small", "data-project": image.project, text: "Images of this project"})] : [])),
    ...image.targets.map((one) => targetPart(image, one)),
    ...(others.length ? [el("section", {class: "part"}, el("h3", {text: "Other Image-Volumes"}), volumeTable(others, present))] : []),
    el("p", {class: "small dim", text: `Image-Volumes as they were listed ${ago(present, image.listed)}. Now, from Glance and Cinder:`}), command("status", image.id)];
}
async function showDetail(id) {
  const opener = document.activeElement;
  $("d-name").textContent = "Image";
  $("d-id").textContent = plain(id);
  $("d-body").replaceChildren(dim("…"));
  if (!$("detail").open) {
    back = {list: opener.closest("section"), key: opener.dataset.id || opener.dataset.key};
    $("detail").showModal();
  }
  try {
    const image = await ask(`image.json?id=${encodeURIComponent(id)}`);
    if ($("d-id").textContent !== plain(id)) return;  // another one was opened meanwhile
    $("d-name").textContent = plain(image.name || "Image");
    $("d-body").replaceChildren(...detail(image));
  } catch (error) {
    $("d-body").replaceChildren(dim(error.message === "404" ? "This worker does not know the image: it is deleted, or no resync has seen it." : "The worker does not answer."), command("explain", id));
  }
}
// Rows and lists are drawn anew while the dialog is open: what opened it may be another element now
function goBack() {
  if (back.list && back.key) [...back.list.querySelectorAll("button")].find((one) => [one.dataset.id, one.dataset.key].includes(back.key))?.focus({preventScroll: true});
}
for (const id of Object.values(CHOICES)) $(id).addEventListener("input", lookAgain);
$("clear").addEventListener("click", () => choose({}));
$("images").addEventListener("click", (event) => { const row = event.target.closest("tr.image"); if (row?.querySelector("button")) showDetail(row.querySelector("button").dataset.id); });
document.addEventListener("click", (event) => {
  const {image, project} = event.target.closest("[data-image], [data-project]")?.dataset || {};
  if (image) showDetail(image);
  if (project) { $("detail").close(); choose({project}); $("images").scrollIntoView({block: "center"}); }
});
$("d-close").addEventListener("click", () => $("detail").close());
$("detail").addEventListener("close", goBack);
addEventListener("scroll", () => requestAnimationFrame(draw), {passive: true});
addEventListener("resize", () => requestAnimationFrame(draw));
