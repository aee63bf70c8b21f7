"""The joint document: /status.json of all replicas of a worker, of this one's document and of what
the others have told. Pure.

Image counts and budgets of a target are those of the replica that serves its lane, as it has seen
the outcome of each job. The broker's own figures (depths, the number of dead letters) are ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import Any

from worker.observe.history import FAILURES, TIMES
from worker.observe.job_records import STATES
from worker.observe.status_document import MOST

SILENT = 20.0
"""Seconds after which a replica that tells nothing counts as silent: its jobs are others' then."""
FORMAT = 1
"""The form of what is merged; replicas of another one are only named."""
Document = Mapping[str, Any]


def joint(own: Document, others: Iterable[tuple[Document, float]], *, most: float) -> Document:
    """Return the document for all replicas, with at most so many jobs.

    `others` are the documents of the other replicas, and how many seconds ago each was told. Those
    that are silent, or of another form, are named in `replicas`; what they do is left out.
    """
    others = list(others)
    heard = [
        document for document, age in others if age <= SILENT and document.get("format") == FORMAT
    ]
    every = [own, *heard]
    jobs = sorted(({**job, "host": one["host"]} for one in every for job in one["jobs"]), key=_rank)
    left_out = sum(one["jobs_left_out"] for one in every)
    shown = jobs if most >= len(jobs) else jobs[: int(most)]
    return {
        **own,
        "replicas": [_replica(own, 0.0, own=True), *(_replica(*one) for one in others)],
        "targets": [_target(target, heard) for target in own["targets"]],
        "lanes": [_lane(lane, every) for lane in own["lanes"]],
        "jobs": shown,
        "jobs_left_out": left_out + len(jobs) - len(shown),
        "failures": _latest(every, "failures")[:FAILURES],
        "times": {
            name: sorted(row for one in every for row in one["times"][name])[-TIMES:]
            for name in own["times"]
        },
        "uploads": _uploads([one["uploads"] for one in every]),
        "dead_letters": {
            **own["dead_letters"],
            "latest": _latest((one["dead_letters"] for one in every), "latest")[:MOST],
        },
        "volumes_made": {
            "hours": _hours(one["volumes_made"]["hours"] for one in every),
            "latest": _latest((one["volumes_made"] for one in every), "latest")[:TIMES],
        },
        "held_back": _distinct(row for one in every for row in one["held_back"]),
        "cache_full": {name: why for one in every for name, why in one["cache_full"].items()},
        "cloned_from": {
            name: _distinct(stores for one in every for stores in one["cloned_from"].get(name, ()))
            for name in {name for one in every for name in one["cloned_from"]}
        },
        "reasons": {name: said for one in every for name, said in one["reasons"].items()},
    }


def _replica(document: Document, age: float, *, own: bool = False) -> dict[str, Any]:
    return {
        "host": str(document.get("host", "")),
        "version": str(document.get("version", "")),
        "own": own,
        "merged": own or (age <= SILENT and document.get("format") == FORMAT),
        "silent": round(age, 1) if age > SILENT else 0.0,
        "lanes": [lane["lane"] for lane in document["lanes"] if lane["served"]]
        if document.get("format") == FORMAT
        else [],
    }


def _rank(job: Document) -> tuple[int, float, float]:
    state = job["state"]
    return STATES.index(state) if state in STATES else len(STATES), job["due"], job["since"]


def _target(own: Document, heard: Iterable[Document]) -> Document:
    lane = f"prewarm.{own['name']}"
    for document in heard:
        served = any(row["served"] and row["lane"] == lane for row in document["lanes"])
        found = next((one for one in document["targets"] if one["name"] == own["name"]), None)
        if served and found:
            return {**own, **{name: found[name] for name in ("states", "bytes", "volumes")}}
    return own


def _lane(own: Document, every: Iterable[Document]) -> Document:
    rows = [
        (row, document["host"])
        for document in every
        for row in document["lanes"]
        if row["lane"] == own["lane"]
    ]
    oldest = [row["oldest"] for row, _ in rows if row["oldest"]]
    return {
        **own,
        **{name: sum(row[name] for row, _ in rows) for name in ("in_progress", "held", "waiting")},
        "oldest": min(oldest, default=None),
        "served": any(row["served"] for row, _ in rows),
        "served_by": next((host for row, host in rows if row["served"]), ""),
    }


def _uploads(parts: list[Document]) -> Document:
    counts = {name: sum(one[name] for one in parts) for name in ("waiting", "refused", "done")}
    waiting = [row for one in parts for row in one["waiting_latest"]]
    return {
        **counts,
        "waiting_latest": sorted(waiting, key=itemgetter("since"))[:MOST],
        "settled_latest": _latest(parts, "settled_latest")[:MOST],
    }


def _latest(parts: Iterable[Document], name: str) -> list[Document]:
    """Return the rows of all parts, the latest first."""
    return sorted((row for one in parts for row in one[name]), key=lambda row: -row["at"])


def _hours(parts: Iterable[Iterable[list[Any]]]) -> list[list[Any]]:
    sums: Counter[tuple[Any, ...]] = Counter()
    for rows in parts:
        for *key, count in rows:
            sums[tuple(key)] += count
    return [[*key, count] for key, count in sorted(sums.items())]


def _distinct(rows: Iterable[Any]) -> list[Any]:
    """Return the rows, each once. They are lists or tuples of texts."""
    return [list(row) for row in dict.fromkeys(tuple(row) for row in rows)]
