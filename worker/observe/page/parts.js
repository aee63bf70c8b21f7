"use strict";
const STATES = {
  warm: ["W", "volumes of it are clones"], making: ["M", "being made now"], cold: ["C", "it will be warm"],
  failed: ["F", "tried again later, or given up"], lost: ["L", "its data can be had nowhere"],
  full: ["B", "the target's budget, or Cinder's cache, has no room"], "held back": ["H", "somebody else undoes it"],
  "partly warm": ["P", "volumes of it are clones in some pools only"],
  unused: ["U", "waits for a second use"],
  unwanted: ["–", "by policy or its owner's wish"], unknown: ["?", "not seen by a resync yet"],
};
const $ = (id) => document.getElementById(id);

// What others write may have characters that nobody sees, and that turn around what stands beside them: these are shown
function plain(value) {
  return String(value).replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, (one) => `\\u${one.codePointAt(0).toString(16).padStart(4, "0")}`);
}
function el(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === "text") made.textContent = plain(value);
    else if (name === "class") made.className = value;
    else made.setAttribute(name, plain(value));
  }
  made.append(...children.map((child) => (typeof child === "string" ? plain(child) : child)));
  return made;
}
// What is drawn anew keeps the focus; what somebody is selecting stays as it is
function fill(node, children) {
  const selection = getSelection();
  if (!selection.isCollapsed && node.contains(selection.anchorNode)) return;
  const key = node.contains(document.activeElement) ? document.activeElement.dataset.key : "";
  node.replaceChildren(...children);
  if (key) [...node.querySelectorAll("[data-key]")].find((one) => one.dataset.key === key)?.focus({preventScroll: true});
}
// A screen reader reads a status aloud whenever it is set
function say(node, text) { if (node.textContent !== plain(text)) node.textContent = plain(text); }
function dim(text) { return el("p", {class: "dim", text}); }
function span(seconds) {
  const away = Math.abs(seconds);
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) if (away >= 2 * size) return `${Math.round(away / size)} ${unit}`;
  return away < 10 ? `${away.toFixed(1)} s` : `${Math.round(away)} s`;
}
function gib(bytes) { return bytes ? `${(bytes / 2 ** 30).toFixed(bytes < 2 ** 30 ? 2 : 1)} GiB` : ""; }
function ago(now, at) { return at ? `${span(now - at)} ago` : ""; }
function many(count, word) { return `${count} ${word}${count === 1 ? "" : "s"}`; }
function chip(state, why) {
  const [letter, text] = STATES[state] || ["?", ""];
  const title = [state, why || text].filter(Boolean).join(": ");
  return el("span", {class: `chip ${STATES[state] ? state : "unknown"}`, title, role: "img", "aria-label": title, text: letter});
}
// An argument as a shell reads it
function quoted(text) { return /^[\w.@:+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`; }
// A command of this program, and a button that copies it
function command(...words) {
  const parts = ["image-volume-worker", ...words.map(quoted)], text = parts.join(" ");
  return el("div", {class: "command"}, el("code", {}, ...parts.flatMap((part, index) => [...(index ? [" "] : []), el("span", {text: part})])),
    el("button", {type: "button", class: "copy", "data-key": text, "data-copy": text, "aria-label": `Copy: ${text}`, text: "Copy"}));
}
async function copy(button) {
  const code = button.parentElement.querySelector("code");
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
  } catch {
    // Browsers have no clipboard for pages that come by plain HTTP from another host
    getSelection().selectAllChildren(code);
    if (!document.execCommand("copy")) { say($("told"), "Selected. Copy it with Ctrl+C."); return; }
    getSelection().removeAllRanges();
  }
  say($("told"), "");
  say($("told"), `Copied: ${button.dataset.copy}`);
  button.classList.add("copied");
  setTimeout(() => document.querySelectorAll(".copied").forEach((one) => one.classList.remove("copied")), 1500);
}
async function ask(path) {
  const answer = await fetch(path, {cache: "no-store", signal: AbortSignal.timeout(8000)});
  if (!answer.ok) throw new Error(String(answer.status));
  return answer.json();
}
document.addEventListener("click", (event) => { const button = event.target.closest("button.copy"); if (button) copy(button); });
