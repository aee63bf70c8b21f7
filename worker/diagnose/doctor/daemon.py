"""Checks of a worker on this machine by its HTTP port. None needs to run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from worker.diagnose.check import Check
from worker.observe.address import shown
from worker.observe.live import NOBODY, get
from worker.observe.metrics import PREFIX

CACHE = "image_volume_cache."


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A worker that answers: why it is not ready, and how often it was told of Cinder's
    image-volume cache."""

    problems: Mapping[str, str] = field(default_factory=dict)
    events: Mapping[str, float] = field(default_factory=dict)


def listen(bind: tuple[str, int] | None) -> Heard | None:
    """Ask the worker at `bind`; None if none answers. Blocks."""
    if bind is None:
        return None
    try:
        problems = json.loads(get(bind, "/readyz")[1])["problems"]
        return Heard(problems=dict(problems), events=_events(get(bind, "/metrics")[1]))
    except (*NOBODY, ValueError, KeyError, TypeError):
        # Nobody is there, or somebody else
        return None


def check(bind: tuple[str, int] | None, heard: Heard | None) -> Check:
    """Whether it is ready. That none is here is no fault: it may run elsewhere. Pure."""
    name = "worker"
    if bind is None:
        return Check(name, "skipped", "not asked: [probes] bind is empty")
    where = shown(bind)
    if heard is None:
        return Check(name, "skipped", f"none answers at {where}; it may run elsewhere")
    if heard.problems:
        told = "; ".join(f"{part}: {problem}" for part, problem in heard.problems.items())
        return Check(
            name,
            "warn",
            f"the one at {where} is not ready: {told}",
            "see its log, and what fails here",
        )
    return Check(name, "ok", f"the one at {where} is ready")


def _events(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            event = sample.labels.get("event_type", "")
            if sample.name == f"{PREFIX}_notifications_total" and event.startswith(CACHE):
                found[event] = found.get(event, 0.0) + sample.value
    return found
