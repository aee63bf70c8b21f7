"use strict";
const SHOWN = 5;  // of each kind in a list; the commands show all

function showWorker(status) {
  const served = status.lanes.filter((lane) => lane.served).map((lane) => lane.lane);
  const others = status.lanes.filter((lane) => !lane.served).map((lane) => lane.lane);
  const replicas = status.replicas || [], lanes = (one) => (one.lanes.length ? ` (${one.lanes.join(", ")})` : "");
  $("worker").classList.toggle("alarm", replicas.some((one) => one.silent));
  if (replicas.length > 1) {
    const told = replicas.map((one) => `${one.host}${lanes(one)}${one.own ? ", which shows this page" : ""}${one.silent ? `, silent for ${span(one.silent)}` : ""}${one.merged || one.silent ? "" : `, of version ${one.version}: look at its own page`}`);
    say($("worker"), `${many(replicas.length, "replica")}: ${told.join("; ")}. The images are shown as host ${status.host} has seen them.`);
    return;
  }
  const parts = [`This page shows one worker, on host ${status.host}.`];
  if (served.length) parts.push(`It serves the lane${served.length > 1 ? "s" : ""} ${served.join(", ")}.`);
  if (others.length) {
    parts.push(`No job of ${others.join(", ")} has come here yet: if another worker serves ${others.length > 1 ? "them" : "it"}, look at that worker's page.`);
  }
  say($("worker"), parts.join(" "));
}
function budget(target) {
  const size = target.bytes ? gib(target.bytes) : "0 GiB";
  if (!target.max_gigabytes && !target.max_count) return [el("div", {class: "small", text: `${size} in ${many(target.volumes, "Image-Volume")}, no budget`})];
  const told = [], shares = [];
  if (target.max_gigabytes) { told.push(`${size} of ${target.max_gigabytes} GiB`); shares.push(target.bytes / 2 ** 30 / target.max_gigabytes); }
  else told.push(size);
  if (target.max_count) { told.push(`${target.volumes} of ${many(target.max_count, "Image-Volume")}`); shares.push(target.volumes / target.max_count); }
  else told.push(many(target.volumes, "Image-Volume"));
  const part = Math.min(1, Math.max(...shares)), percent = Math.round(part * 100), text = `Budget: ${told.join(", ")} (${percent} %)`;
  const fullness = el("span", {class: part > 0.9 ? "nearly" : ""});
  fullness.style.width = `${percent}%`;
  return [el("div", {class: "small", text}), el("div", {class: "meter", role: "meter", "aria-label": `budget of ${target.name}`,
    "aria-valuenow": percent, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuetext": text}, fullness)];
}
function showTargets(status) {
  fill($("targets"), status.targets.map((target) => {
    const states = target.states;
    const total = Object.values(states).reduce((sum, count) => sum + count, 0);
    const order = Object.keys(STATES).filter((state) => states[state]);
    const words = order.map((state) => `${states[state]} ${state}`).join(", ") || "no images seen yet";
    const bar = el("div", {class: "bar", role: "img", "aria-label": words});
    for (const state of order) {
      const part = el("span", {class: state, title: `${states[state]} ${state}`});
      part.style.flexGrow = String(states[state] / total);
      bar.append(part);
    }
    const about = [target.volume_type, target.strategy, target.pools.length > 1 && many(target.pools.length, "pool")].filter(Boolean).join(", ");
    const alarm = target.unusable ? `can't be used: ${target.unusable}` : target.paused ? "paused by an operator" : "";
    return el("div", {class: "target"}, el("strong", {text: target.name}), el("span", {class: "dim small", text: ` ${about}`}),
      ...(alarm ? [el("div", {class: "small alarm", text: alarm})] : []), bar, el("div", {class: "small", text: words}), ...budget(target));
  }));
}
function showLanes(status) {
  const number = (label, value) => el("td", {class: "number", "data-label": label, text: value});
  fill($("lanes").tBodies[0], status.lanes.map((lane) => el("tr", {}, el("th", {scope: "row"}, ...lane.lane.split(/(?<=\.)/).flatMap((part) => [part, el("wbr")])),
    number("Served by", lane.served_by || (lane.served ? "yes" : "no job yet")), number("Busy", `${lane.in_progress}/${lane.width}`), number("Held", lane.held),
    number("On broker", lane.depth), number("Next tries", lane.waiting),
    number("Oldest", lane.oldest ? span(status.now - lane.oldest) : "–"))));
}
function title(job) {
  return [...(job.handler ? [el("strong", {text: job.target ? `${job.handler} ${job.target}` : job.handler}), " "] : []), imageLink(job)];
}
// Opens what is known of the image
function imageLink(job) {
  return el("button", {type: "button", class: "link", "data-image": job.image_id, "data-key": `${job.handler} ${job.target} ${job.image_id} ${job.at}`, "aria-haspopup": "dialog"},
    ...(job.name ? [el("span", {text: job.name}), " "] : []), el("span", {class: "mono", text: job.image_id}));
}
function showNow(status) {
  const jobs = status.jobs.filter((job) => job.state === "in progress");
  const waiting = status.jobs.filter((job) => job.state === "waiting").slice(0, SHOWN);
  const parts = jobs.map((job) => {
    const since = Math.max(0, status.now - job.since);
    const bar = el("span"), around = el("div", {class: "progress", role: "progressbar", "aria-label": `estimated progress of image ${job.image_id}`}, bar);
    let text = `${job.doing || "is looked at"}, for ${span(since)}`;
    if (job.expected) {
      const part = Math.min(0.95, since / job.expected);
      bar.style.width = `${Math.round(part * 100)}%`;
      around.setAttribute("aria-valuenow", String(Math.round(part * 100)));
      text += `; estimated: ${span(job.expected)}, by what others took`;
    } else around.classList.add("open");
    return el("div", {class: "job"}, ...title(job), el("div", {class: "small dim", text}), around);
  });
  for (const job of waiting) parts.push(el("div", {class: "job"}, ...title(job),
    el("div", {class: "small dim", text: `next try in ${span(Math.max(0, job.due - status.now))}: ${job.reason}`})));
  fill($("now"), parts.length ? parts : [dim("Nothing is being made.")]);
}
function showUploads(status) {
  const uploads = status.uploads, row = (one, state, text) => el("div", {class: "job"},
    el("span", {class: `tag ${state}`, text: state}), " ", imageLink(one), el("div", {class: "small dim", text}));
  const rows = uploads.waiting_latest.slice(0, SHOWN).map((one) => row(one, "waiting",
    [one.reason || "waits for a slot", `since ${span(status.now - one.since)}`, one.due > status.now && `next try in ${span(one.due - status.now)}`].filter(Boolean).join("; ")));
  for (const state of ["refused", "done"]) {
    for (const one of uploads.settled_latest.filter((some) => some.state === state).slice(0, SHOWN)) {
      rows.push(row(one, state, [one.reason, ago(status.now, one.at)].filter(Boolean).join("; ")));
    }
  }
  say($("uploads-count"), `${uploads.waiting} waiting, ${uploads.refused} refused, ${uploads.done} done since the worker started`);
  fill($("uploads"), rows);
}
function showDead(status) {
  const dead = status.dead_letters, gone = dead.count === 0;
  const known = gone ? [] : dead.latest;
  const parts = known.slice(0, 2 * SHOWN).map((one) => el("div", {class: "job"}, ...title(one), el("div", {class: "small", text: one.reason}),
    el("div", {class: "small dim", text: `given up ${ago(status.now, one.at)}, after ${one.attempt === 1 ? "1 try" : `${one.attempt} tries`}`}),
    command("dead-letters", "replay", "--handler", one.handler, ...(one.target ? ["--target", one.target] : []), "--image-id", one.image_id)));
  const count = dead.count === null ? "The broker has not told how many there are." : gone ? "None." :
    `${many(dead.count, "dead letter")} on the broker, of all workers. ${known.length ? "The latest of this worker:" : "None is a job of this worker: image-volume-worker dead-letters list shows them."}`;
  say($("dead-count"), count);
  if (dead.count) parts.push(el("p", {class: "small dim", text: "All of them, with their ids:"}), command("dead-letters", "list"));
  fill($("dead"), parts);
}
function showFailures(status) {
  const parts = status.failures.slice(0, 20).map((one) => el("div", {class: "job"}, ...title(one),
    el("div", {class: "small", text: one.reason}),
    el("div", {class: "small dim", text: `${one.parked ? "given up" : "tried again"}, try ${one.attempt}, ${span(status.now - one.at)} ago`})));
  fill($("failures"), parts.length ? parts : [dim("None since it was started.")]);
}
function showPlots(status) {
  plot($("plot-warm"), status.times.time_to_warm.map(([, target, seconds]) => ({target, seconds, kind: "image_volume"})),
    (points) => `oldest first; ${[...new Set(points.map((p) => p.target))].map((name) => {
      const some = points.filter((p) => p.target === name).map((p) => p.seconds);
      return `${name}: ${some.length}, median ${span(median(some))}`;
    }).join("; ")}`);
  const made = status.volumes_made.latest.filter((one) => one.seconds !== null).reverse();
  plot($("plot-create"), made.map((one) => ({target: one.target, seconds: one.seconds, kind: one.path})), (points) => {
    const told = (test, word) => { const some = points.filter((p) => test(p.kind)).map((p) => p.seconds); return some.length ? `${many(some.length, word)}, median ${span(median(some))}` : ""; };
    return [told((path) => !["download", "unknown"].includes(path), "● clone"), told((path) => path === "download", "■ download"),
      told((path) => path === "unknown", "◆ unknown")].filter(Boolean).join("; ");
  });
}
function showMade(status) {
  const {hours, latest} = status.volumes_made, sums = new Map();
  for (const [, , path, reason, count] of hours) sums.set(`${path} ${reason}`, (sums.get(`${path} ${reason}`) || 0) + count);
  stacked($("plot-made"), hours, status.now);
  const rows = Object.keys(PATHS).flatMap((path) => [...sums].filter(([key]) => key.startsWith(`${path} `)).sort((a, b) => b[1] - a[1]).map(([key, count]) => {
    const reason = key.slice(path.length + 1), words = (status.reasons || {})[reason];
    return el("tr", {}, el("td", {}, el("span", {class: `key path-${path}`}), PATHS[path]), el("td", {}, ...(reason ? [el("span", {text: reason})] : []),
      ...(words ? [el("div", {class: "small dim", text: `${words.sentence}: ${words.advice}`})] : [])), el("td", {class: "number", text: count}));
  }));
  fill($("made").tBodies[0], rows);
  $("made").hidden = !rows.length;
  const downloads = latest.filter((one) => one.path === "download").slice(0, SHOWN);
  fill($("downloads"), downloads.length ? [el("h3", {text: "Latest downloads"}), ...downloads.map((one) => el("div", {class: "job"}, imageLink(one),
    el("div", {class: "small dim", text: [`on ${one.target}`, one.reason, one.seconds !== null && span(one.seconds), ago(status.now, one.at)].filter(Boolean).join(", ")})))] : []);
}
