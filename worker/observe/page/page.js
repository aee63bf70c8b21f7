"use strict";
let gridOf = "", gridAt = 0, heard = 0, asking = false;

async function tick() {
  if (asking || document.hidden) return;
  asking = true;
  try {
    const status = await ask("status.json");
    heard = Date.now();
    document.body.classList.remove("stale");
    const problems = Object.entries(status.problems);
    $("health").textContent = problems.length ? "not ready" : "ready";
    $("health").className = problems.length ? "bad" : "good";
    fill($("problems"), problems.map(([part, text]) => el("li", {text: `${part}: ${text}`})));
    $("about").textContent = `${status.version}, up for ${span(status.now - status.started)}, ` +
      (status.last_resync ? `last resync ${span(status.now - status.last_resync)} ago` : "no resync yet");
    // A worker that was started again counts from the beginning, and may have come to the same number
    if (gridOf !== `${status.started} ${status.grid}` && Date.now() - gridAt >= EVERY) {
      await look();
      gridOf = `${status.started} ${grid.revision}`;
      gridAt = Date.now();
    }
    showTargets(status); showLanes(status); showNow(status); showFailures(status); showPlots(status);
  } catch (error) {
    document.body.classList.add("stale");
    $("away").textContent = heard ? `No answer since ${new Date(heard).toLocaleTimeString()}; asking again.` : "No answer yet; asking again.";
  } finally { asking = false; }
}
for (const [state, [, text]] of Object.entries(STATES)) {
  $("legend").append(el("span", {}, chip(state), ` ${state}`));
  $("state").append(el("option", {value: state, text: state}));
}
document.addEventListener("visibilitychange", tick);
tick();
setInterval(tick, 2000);
