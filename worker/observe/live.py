"""Live: the state of jobs from the /status.json of a running worker. Reads only; commands do
without it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from worker.core.job import Key

TIMEOUT = 3.0
"""Seconds that a worker has for its answer; one that is there takes a few milliseconds."""
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
NOBODY = (OSError, http.client.HTTPException)
"""Errors where no worker answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveJob:
    """A job that a worker knows of. `state` is in progress, held, waiting or parked; `due` in epoch
    seconds, or 0.

    `doing` is its last step, `reason` why it waits, `failure` why its last try failed, "" if none
    has.
    """

    key: Key
    state: str
    attempt: int
    first_at: float
    due: float
    doing: str
    reason: str
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveLane:
    """A lane as a worker sees it: jobs in progress, held for a slot, and waiting for another try.

    `depth` is the number of jobs on the broker; `oldest` is when the oldest job was first asked
    for, epoch seconds, 0 for none.
    """

    in_progress: int
    held: int
    waiting: int
    depth: int
    oldest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """The whole answer of a worker.

    `held_back` has the reasons why keys are not made warm again for now, `cache_full` why targets
    take nothing more into Cinder's cache, `cloned_from` the sets of Glance's stores from which
    Cinder's driver clones by itself, by target. `left_out` are the hosts of replicas that have told
    nothing for a while, or in a form that this one does not read.
    """

    jobs: Mapping[Key, LiveJob]
    lanes: Mapping[str, LiveLane]
    held_back: Mapping[Key, str] = field(default_factory=dict)
    cache_full: Mapping[str, str] = field(default_factory=dict)
    cloned_from: Mapping[str, frozenset[frozenset[str]]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def ask(address: tuple[str, int]) -> Live | None:
    """Ask the worker that serves this address for its status; None if none does. Blocks."""
    try:
        status, body = get(address, "/status.json?jobs=all")
        return _live(json.loads(body)) if status == http.HTTPStatus.OK else None
    except (*NOBODY, ValueError, KeyError, TypeError):
        # Nobody serves there, or somebody else does: status is right without it
        return None


def volume(address: tuple[str, int], volume_id: str) -> Mapping[str, Any]:
    """Ask the worker that serves this address how a volume was made; empty if it does not know, or
    if none answers. Blocks."""
    try:
        status, body = get(address, f"/volume.json?id={volume_id}")
        told = json.loads(body) if status == http.HTTPStatus.OK else {}
    except (*NOBODY, ValueError):
        return {}
    known = {"way", "reasons", "why", "image_id", "target", "seconds"}
    return told if isinstance(told, dict) and known <= told.keys() else {}


def get(address: tuple[str, int], path: str) -> tuple[int, str]:
    """Return status and body of the probes' answer; raise one of `NOBODY` if there is none.
    Blocks."""
    host, port = address
    connection = http.client.HTTPConnection(EVERYWHERE.get(host, host), port, timeout=TIMEOUT)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def _live(document: Mapping[str, Any]) -> Live:
    return Live(
        jobs={job.key: job for job in _jobs(document["jobs"])},
        lanes={
            row["lane"]: LiveLane(
                in_progress=int(row["in_progress"]),
                held=int(row["held"]),
                waiting=int(row["waiting"]),
                depth=int(row["depth"]),
                oldest=float(row["oldest"] or 0.0),
            )
            for row in document["lanes"]
        },
        held_back={
            Key("prewarm", str(image_id), str(target)): str(why)
            for image_id, target, why in document.get("held_back", ())
        },
        cache_full={
            str(target): str(why) for target, why in document.get("cache_full", {}).items()
        },
        cloned_from={
            str(target): frozenset(frozenset(str(store) for store in stores) for stores in sets)
            for target, sets in document.get("cloned_from", {}).items()
        },
        left_out=tuple(
            str(one["host"]) for one in document.get("replicas", ()) if not one["merged"]
        ),
    )


def _jobs(rows: list[Mapping[str, Any]]) -> Iterator[LiveJob]:
    # Jobs in progress come first, and must win over other jobs of the same key
    for row in reversed(rows):
        yield LiveJob(
            key=Key(row["handler"], row["image_id"], row["target"]),
            state=row["state"],
            attempt=int(row["attempt"]),
            first_at=float(row["first_at"] or 0.0),
            due=float(row["due"] or 0.0),
            doing=row["doing"] or "",
            reason=row["reason"] or "",
            # A worker of a release before tells none
            failure=row.get("failure") or "",
        )
