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
function fill(node, children) { node.replaceChildren(...children); }
function span(seconds) {
  const away = Math.abs(seconds);
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) if (away >= 2 * size) return `${Math.round(away / size)} ${unit}`;
  return away < 10 ? `${away.toFixed(1)} s` : `${Math.round(away)} s`;
}
function gib(bytes) { return bytes ? `${(bytes / 2 ** 30).toFixed(bytes < 2 ** 30 ? 2 : 1)} GiB` : ""; }
function chip(state, why) {
  const [letter, text] = STATES[state] || ["?", ""];
  const title = [state, why || text].filter(Boolean).join(": ");
  return el("span", {class: `chip ${STATES[state] ? state : "unknown"}`, title, role: "img", "aria-label": title, text: letter});
}

async function ask(path) {
  const answer = await fetch(path, {cache: "no-store", signal: AbortSignal.timeout(8000)});
  if (!answer.ok) throw new Error(String(answer.status));
  return answer.json();
}
