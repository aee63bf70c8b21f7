"""Checks of a worker on this machine by its HTTP port. None needs to run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from prometheus_client.parser import text_string_to_metric_families

from worker.core.age import SKEW
from worker.core.cloud import Volume
from worker.diagnose.check import Check
from worker.diagnose.doctor.untold import Untold
from worker.observe.address import shown
from worker.observe.live import NOBODY, get
from worker.observe.metrics import PREFIX
from worker.openstack.survey import Shown

CACHE = "image_volume_cache."
WHO = {
    "image": ("an image", "Glance", "glance-api"),
    "block-storage": ("a volume", "Cinder", "cinder-volume and cinder-api"),
}
"""What each service makes, its name, and who sends its notifications."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A worker that answers: why it is not ready, how often it was told of Cinder's image-volume
    cache, and when it last heard of each service (epoch seconds). `alone`: no other replica hears
    some of the notifications."""

    problems: Mapping[str, str] = field(default_factory=dict)
    events: Mapping[str, float] = field(default_factory=dict)
    last: Mapping[str, float] = field(default_factory=dict)
    alone: bool = True


def listen(bind: tuple[str, int] | None) -> Heard | None:
    """Ask the worker at `bind`; None if none answers. Blocks."""
    if bind is None:
        return None
    try:
        problems = json.loads(get(bind, "/readyz")[1])["problems"]
        status = json.loads(get(bind, "/status.json?jobs=0")[1])
        events, last = _metrics(get(bind, "/metrics")[1])
        alone = len(status.get("replicas", ())) < 2
        return Heard(problems=dict(problems), events=events, last=last, alone=alone)
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


def notifications(
    heard: Heard | None,
    images: tuple[Shown, ...] | Untold,
    volumes: tuple[Volume, ...] | Untold,
) -> Iterator[Check]:
    """Whether the worker has heard of Glance and Cinder since they made something. Pure."""
    if heard is None or not heard.last:
        return
    name = "worker notifications"
    if not heard.alone:
        yield Check(name, "skipped", "several replicas share them: see the alert HearsNothing")
        return
    made = {
        "image": max((one.created_epoch for one in known(images)), default=0.0),
        "block-storage": max((one.created_epoch for one in known(volumes)), default=0.0),
    }
    silent = {
        service: made[service] - last
        for service, last in heard.last.items()
        if made.get(service, 0.0) > last + SKEW
    }
    for service, seconds in silent.items():
        what, who, made_by = WHO[service]
        yield Check(
            name,
            "warn",
            f"{what} was made {seconds:.0f} s after the worker last heard of {who}",
            f"set driver = messagingv2 in [oslo_messaging_notifications] of every {made_by}, and "
            "see exchanges, topics and priorities of [notifications]; resync finds what was missed",
        )
    if not silent:
        yield Check(name, "ok", "heard of Glance and Cinder since they made something")


def known(answer: tuple[T, ...] | Untold) -> tuple[T, ...]:
    """The answer, if there is one."""
    return () if isinstance(answer, Untold) else answer


def _metrics(text: str) -> tuple[dict[str, float], dict[str, float]]:
    events: dict[str, float] = {}
    last: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            event = sample.labels.get("event_type", "")
            if sample.name == f"{PREFIX}_notifications_total" and event.startswith(CACHE):
                events[event] = events.get(event, 0.0) + sample.value
            elif sample.name == f"{PREFIX}_last_notification_timestamp_seconds":
                last[sample.labels["service"]] = sample.value
    return events, last
