"use strict";
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
    return el("div", {class: "target"}, el("strong", {text: target.name}),
      el("span", {class: "dim small", text: ` ${[target.volume_type, target.strategy, target.bytes && gib(target.bytes)].filter(Boolean).join(", ")}`}), bar, el("div", {class: "small", text: target.unusable ? `can't be used: ${target.unusable}` : target.paused ? `paused by an operator; ${words}` : words}));
  }));
}
function showLanes(status) {
  fill($("lanes").tBodies[0], status.lanes.map((lane) => el("tr", {}, el("td", {}, ...lane.lane.split(/(?<=\.)/).flatMap((part) => [part, el("wbr")])),
    el("td", {class: "number", text: `${lane.in_progress}/${lane.width}`}), el("td", {class: "number", text: lane.held}),
    el("td", {class: "number", text: lane.depth}), el("td", {class: "number", text: lane.waiting}),
    el("td", {class: "number", text: lane.oldest ? span(status.now - lane.oldest) : ""}))));
}
function title(job) {
  return [el("strong", {text: job.target ? `${job.handler} ${job.target}` : job.handler}), " ",
    el("span", {class: "mono", text: job.image_id}), el("span", {class: "dim", text: job.name ? ` ${job.name}` : ""})];
}
function showNow(status) {
  const jobs = status.jobs.filter((job) => job.state === "in progress");
  const waiting = status.jobs.filter((job) => job.state === "waiting").slice(0, 5);
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
  fill($("now"), parts.length ? parts : [el("p", {class: "dim", text: "Nothing is being made."})]);
}
function showFailures(status) {
  const parts = status.failures.slice(0, 20).map((one) => el("div", {class: "job"}, ...title(one),
    el("div", {class: "small", text: one.reason}),
    el("div", {class: "small dim", text: `${one.parked ? "given up" : "tried again"}, try ${one.attempt}, ${span(status.now - one.at)} ago`})));
  fill($("failures"), parts.length ? parts : [el("p", {class: "dim", text: "None since it was started."})]);
}
function showPlots(status) {
  plot($("plot-warm"), status.times.time_to_warm.map(([, target, seconds]) => ({target, seconds, good: true})),
    (points) => `oldest first; ${[...new Set(points.map((p) => p.target))].map((name) => {
      const some = points.filter((p) => p.target === name).map((p) => p.seconds);
      return `${name}: ${some.length}, median ${span(median(some))}`;
    }).join("; ")}`);
  plot($("plot-create"), status.times.volume_create.map(([, target, good, seconds]) => ({target, seconds, good})), (points) => {
    const say = (good, word) => { const some = points.filter((p) => p.good === good).map((p) => p.seconds); return some.length ? `${some.length} ${word}${some.length > 1 ? "s" : ""}, median ${span(median(some))}` : ""; };
    return [say(true, "● clone"), say(false, "■ download")].filter(Boolean).join("; ");
  });
}
