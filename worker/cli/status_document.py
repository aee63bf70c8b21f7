"""The document of `/status.json`, which the page and other commands read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from worker.core.handler import Targeted
from worker.core.release import release
from worker.core.target import Target
from worker.observe.activity import Activity


def status_document(
    handlers: Sequence[Targeted],
    targets: Iterable[Target],
    activity: Activity,
    *,
    lanes: Mapping[str, int],
    depths: Mapping[str, int],
    unusable: Mapping[str, str],
    paused: Set[str],
    most: float,
) -> Mapping[str, Any]:
    """Return the state of targets, lanes and jobs, at most so many jobs.

    `unusable` and `paused` are targets, by what the cloud and an operator say.
    """
    decided = {target.name: target for handler in handlers for target in handler.resolved}
    status = activity.status(
        targets=(decided.get(one.name, one) for one in targets),
        lanes=lanes,
        depths=depths,
        most=most,
        unusable={
            **{name: why for handler in handlers for name, why in handler.unusable.items()},
            **unusable,
        },
    )
    for row in status["targets"]:
        row["paused"] = row["name"] in paused
    return {
        "version": release(),
        **status,
        "held_back": [one for handler in handlers for one in handler.held_back()],
        "cache_full": {name: why for handler in handlers for name, why in handler.full().items()},
        "cloned_from": {
            name: sets for handler in handlers for name, sets in handler.learned().items()
        },
    }
