"""Listing: some of the images with their states, for a page that shows a part at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from worker.core.newest import Newest
from worker.observe.grid import Grid, cell_at, overlay_of
from worker.observe.job_records import JobRecord
from worker.observe.order import MOST_IMAGES, Choice, Order, arrange

KEPT = 4
"""Orders, and choices of images, that are remembered."""


class Present(NamedTuple):
    """All images and jobs at a revision."""

    revision: int
    ids: list[str]
    records: list[JobRecord]


class Listing:
    """Sorts and filters the images of a grid. Called on the threads of the probes.

    `look` returns a copy of what there is, which its owner makes under its lock.
    """

    def __init__(self, grid: Grid, look: Callable[[], Present]) -> None:
        self._grid = grid
        self._look = look
        self._lock = threading.Lock()
        self._orders: Newest[tuple[str, ...], Order] = Newest(KEPT)
        self._chosen: Newest[tuple[object, ...], list[str]] = Newest(KEPT)

    def document(self, targets: Iterable[str], choice: Choice) -> dict[str, Any]:
        """Return some of the images with their cells, as JSON."""
        targets = tuple(targets)
        if choice.target in targets:
            targets = (choice.target,)
        present = self._look()
        overlay = overlay_of(present.records)
        with self._lock:
            order = self._sorted(targets, present)
            ids = self._matching(order, choice, present)
        start = min(max(choice.start, 0), len(ids))
        images, projects = [], []
        for image_id in ids[start : start + min(max(choice.count, 0), MOST_IMAGES)]:
            if row := self._grid.row(image_id):
                cells = (cell_at(image_id, row, target, overlay) for target in targets)
                told = [[one.state, one.why] for one in cells]
                images.append([image_id, row.name, row.size, told])
                projects.append(row.project)
        return {
            "revision": order.revision,
            "targets": list(targets),
            "total": len(order.ids),
            "found": len(ids),
            "start": start,
            "images": images,
            "projects": projects,
        }

    def _sorted(self, targets: tuple[str, ...], present: Present) -> Order:
        """Return the order of all images as it is now or, where that takes long, was a moment
        ago."""
        order = self._orders.get(targets)
        if order is None or not order.serves(targets, present.revision, time.monotonic()):
            order = arrange(
                self._grid,
                present.ids,
                present.records,
                targets=targets,
                revision=present.revision,
            )
        self._orders[targets] = order
        return order

    def _matching(self, order: Order, choice: Choice, present: Present) -> list[str]:
        """Return the ids that match: found once for all parts of one choice."""
        key = (order.targets, order.at, replace(choice, start=0, count=0))
        ids = self._chosen.get(key)
        if ids is None:
            ids = order.matching(choice, self._grid, overlay_of(present.records))
        self._chosen[key] = ids
        return ids
