"""The document of /status.json: targets, lanes, jobs, and what happened lately. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from worker.core.creation import Way
from worker.core.target import Target
from worker.observe.grid import Row
from worker.observe.history import Past
from worker.observe.job_records import (
    PARKED,
    UPLOAD,
    JobRecord,
    lane_shown,
    named,
    shown,
)

DEAD = "dead"
"""The name of the dead letters among the depths of the lanes."""
MOST = 50
"""Uploads and dead letters in a document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Targets, the widths of lanes and jobs on the broker, which the activity does not know.

    `unusable` says why targets can't be used. `serves` tells whether this worker has the jobs of a
    lane; with several replicas another one may.
    """

    targets: Iterable[Target]
    lanes: Mapping[str, int]
    depths: Mapping[str, int]
    unusable: Mapping[str, str] = field(default_factory=dict)
    serves: Callable[[str], bool] = lambda _: True


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A copy of everything that the activity knows, except for the images: those are asked for one
    by one.

    `records` are in the order in which they are shown. `volumes` counts Image-Volumes by target,
    `sizes` has their bytes.
    """

    started: float
    now: float
    resynced: float
    revision: int
    records: list[JobRecord]
    states: Mapping[str, Mapping[str, int]]
    sizes: Mapping[str, int]
    volumes: Mapping[str, int]
    past: Past
    row: Callable[[str], Row | None]

    def name(self, image_id: str) -> str:
        """Return the image's name, "" unless everybody may know it."""
        row = self.row(image_id)
        return row.name if row else ""


def status_document(known: Known, services: Services, *, most: float) -> dict[str, Any]:
    """Return the document, with at most so many jobs."""
    records, past = known.records, known.past
    by_lane: dict[str, list[JobRecord]] = {lane: [] for lane in services.lanes}
    for record in records:
        by_lane.setdefault(record.job.key.lane, []).append(record)
    shown_jobs = records if most >= len(records) else records[: int(most)]
    return {
        "started": known.started,
        "now": known.now,
        "last_resync": known.resynced,
        "targets": [_target(known, target, services) for target in services.targets],
        "lanes": [
            {
                **lane_shown(lane, width, services.depths.get(lane, 0), by_lane[lane]),
                "served": services.serves(lane),
            }
            for lane, width in services.lanes.items()
        ],
        "jobs": [_job(known, one) for one in shown_jobs],
        "jobs_left_out": len(records) - len(shown_jobs),
        "failures": [{**one, "name": known.name(one["image_id"])} for one in past.failures],
        "times": {
            "time_to_warm": [[one.at, one.target, one.seconds] for one in past.warmed],
            "volume_create": [
                [one.at, one.target, one.path != Way.DOWNLOAD, one.seconds]
                for one in past.created
                if one.seconds is not None
            ],
        },
        "uploads": _uploads(known, by_lane.get(UPLOAD, [])),
        "dead_letters": _dead_letters(known, services.depths.get(DEAD)),
        "volumes_made": {
            "hours": [list(one) for one in past.hours],
            "latest": [
                {**one._asdict(), "name": known.name(one.image_id)}
                for one in reversed(past.created)
            ],
        },
        "grid": known.revision,
    }


def _target(known: Known, target: Target, services: Services) -> dict[str, Any]:
    return {
        "name": target.name,
        "volume_type": target.volume_type,
        "strategy": str(target.strategy),
        "states": known.states.get(target.name, {}),
        "bytes": known.sizes.get(target.name, 0),
        "unusable": services.unusable.get(target.name, ""),
        "volumes": known.volumes.get(target.name, 0),
        "max_gigabytes": target.max_gigabytes,
        "max_count": target.max_count,
        "pools": sorted({host for place in target.places for host in place.hosts}),
    }


def _job(known: Known, record: JobRecord) -> dict[str, Any]:
    row = known.row(record.job.key.image_id)
    return shown(record, row.name if row else "", row.size if row else 0, known.past.warmed)


def _uploads(known: Known, records: list[JobRecord]) -> dict[str, Any]:
    """Return the uploads that wait, were refused, and were completed: the latest of each."""
    waiting = [record for record in records if record.state != PARKED]
    past = known.past
    refused = [one for one in past.uploads if one.state == "refused"]
    return {
        "waiting": len(waiting),
        "refused": len(refused),
        "done": past.uploads_done,
        "waiting_latest": [
            {
                "image_id": one.job.key.image_id,
                "name": known.name(one.job.key.image_id),
                "reason": one.doing or one.reason,
                "since": one.job.first_at,
                "due": one.due,
            }
            for one in waiting[:MOST]
        ],
        "settled_latest": [
            {
                "image_id": one.image_id,
                "name": known.name(one.image_id),
                "state": one.state,
                "reason": one.reason,
                "at": one.at,
            }
            for one in reversed(past.uploads[-MOST:])
        ],
    }


def _dead_letters(known: Known, count: int | None) -> dict[str, Any]:
    """Return how many dead letters the broker keeps, None if that is not known, and the latest that
    this worker has made."""
    parked = [record for record in known.records if record.state == PARKED]
    parked.sort(key=lambda one: -one.since)
    return {
        "count": count,
        "latest": [
            {
                **named(one.job.key),
                "name": known.name(one.job.key.image_id),
                "reason": one.reason,
                "attempt": one.job.attempt,
                "at": one.since,
                "due": one.due,
            }
            for one in parked[:MOST]
        ],
    }
