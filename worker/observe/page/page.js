"use strict";
let gridOf = "", gridAt = 0, heard = 0, asking = false, present = 0;

function showHead(status) {
  const problems = Object.entries(status.problems);
  say($("health"), problems.length ? "not ready" : "ready");
  $("health").className = problems.length ? "bad" : "good";
  fill($("problems"), problems.map(([part, text]) => el("li", {text: `${part}: ${text}`})));
  $("about").textContent = `${status.version}, up for ${span(status.now - status.started)}, ` +
    (status.last_resync ? `last resync ${span(status.now - status.last_resync)} ago` : "no resync yet");
  showWorker(status);
}
async function tick() {
  if (asking || document.hidden) return;
  asking = true;
  try {
    const status = await ask("status.json");
    heard = Date.now();
    present = status.now;
    document.body.classList.remove("stale");
    showHead(status);
    poolsOf = Object.fromEntries(status.targets.map((target) => [target.name, target.pools]));
    offerTargets(status.targets.map((target) => target.name));
    // A worker that was started again counts from the beginning, and may have come to the same number
    if (gridOf !== `${status.started} ${status.grid}` && Date.now() - gridAt >= EVERY) {
      await look();
      gridOf = `${status.started} ${grid.revision}`;
      gridAt = Date.now();
    }
    for (const show of [showTargets, showLanes, showNow, showUploads, showDead, showFailures, showMade, showPlots]) show(status);
  } catch (error) {
    document.body.classList.add("stale");
    say($("away"), heard ? `No answer since ${new Date(heard).toLocaleTimeString()}; asking again.` : "No answer yet; asking again.");
  } finally { asking = false; }
}
for (const [state] of Object.entries(STATES)) {
  $("legend").append(el("span", {}, chip(state), ` ${state}`));
  $("state").append(el("option", {value: state, text: state}));
}
document.addEventListener("visibilitychange", tick);
tick();
setInterval(tick, 2000);
