"""The grid: images by targets, each cell with the state of the image there."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import assert_never

from worker.core.cloud import Image
from worker.core.job import Key
from worker.core.outcome import Again, Done, Outcome, Park, Skip
from worker.core.state import State
from worker.observe.job_records import IN_PROGRESS, PARKED, PREWARM, WAITING, JobRecord

# Names of other images are their projects' business
OPEN = frozenset({"public", "community"})


@dataclass(frozen=True, slots=True)
class Cell:
    """An image on a target: its state, why, and when that was found, in epoch seconds."""

    state: State
    why: str = ""
    at: float = 0.0


UNKNOWN = Cell(State.UNKNOWN, "no resync has seen it yet")
Overlay = Mapping[tuple[str, str], Cell]
"""Cells that jobs change, by image id and target."""


@dataclass(frozen=True, slots=True)
class Row:
    """An image as it was found; `project` is the id of its owner. Frozen, so that readers need no
    lock."""

    name: str
    size: int
    cells: dict[str, Cell]
    seen: float
    project: str = ""


class Grid:
    """Rows by image id, and how many images are in each state. Has no lock: its owner has.

    Only `ids` and `row` may be called without the owner's lock, as rows are frozen.
    """

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}
        self._totals: Counter[tuple[str, str]] = Counter()
        self._comparing = 0.0

    def ids(self) -> list[str]:
        """Return the ids of all images."""
        return list(self._rows)

    def row(self, image_id: str) -> Row | None:
        """Return the row of an image; None if it was not seen, or is gone."""
        return self._rows.get(image_id)

    def name(self, image_id: str) -> str:
        """Return the image's name, "" unless everybody may know it."""
        row = self._rows.get(image_id)
        return row.name if row else ""

    def keep_targets(self, targets: Collection[str]) -> None:
        """Forget all targets but these."""
        self._rows = {
            image_id: replace(
                row, cells={name: cell for name, cell in row.cells.items() if name in targets}
            )
            for image_id, row in self._rows.items()
        }
        self._totals = Counter(
            {key: count for key, count in self._totals.items() if key[0] in targets}
        )

    def look(self, image: Image, states: Mapping[str, tuple[State, str]]) -> bool:
        """Take over the states of an image by target; return whether they are new.

        Cells that a job has found during a comparison are newer, and stay.
        """
        cells = {target: _as_listed(state, why) for target, (state, why) in states.items()}
        old = self._rows.get(image.id)
        if old:
            newer = {
                name: cell for name, cell in old.cells.items() if cell.at > self._comparing > 0
            }
            cells = {**old.cells, **cells, **newer}
        name = image.name if image.visibility in OPEN else ""
        # A few projects own most images
        row = Row(name, image.size, cells, time.time(), sys.intern(image.owner))
        new = old is None or replace(old, seen=row.seen) != row
        if new:
            self._count(old.cells if old else {}, cells)
        self._rows[image.id] = row
        return new

    def hide(self, image_id: str, visibility: str) -> bool:
        """Forget the name of an image that is not everybody's business any more; return whether it
        was known."""
        row = self._rows.get(image_id)
        if row and row.name and visibility not in OPEN:
            self._rows[image_id] = replace(row, name="")
            return True
        return False

    def begin_comparison(self) -> None:
        """Note that all images will be looked at."""
        self._comparing = time.time()

    def end_comparison(self) -> None:
        """Drop the images that the comparison did not see."""
        since = self._comparing
        gone = [
            image_id
            for image_id, row in self._rows.items()
            if row.seen < since and not any(cell.at > since for cell in row.cells.values())
        ]
        for image_id in gone:
            self.drop(image_id)

    def put(self, key: Key, cell: Cell | None, now: float) -> None:
        """Set the cell of a key; with None the image has none there any more."""
        row = self._rows.get(key.image_id) or Row("", 0, {}, now)
        cells = {name: one for name, one in row.cells.items() if name != key.target}
        if cell:
            cells[key.target] = cell
        self._count(row.cells, cells)
        if cells:
            self._rows[key.image_id] = replace(row, cells=cells)
        else:
            self._rows.pop(key.image_id, None)

    def drop(self, image_id: str) -> None:
        """Forget an image."""
        if row := self._rows.pop(image_id, None):
            self._count(row.cells, {})

    def totals(self, overlay: Overlay) -> Counter[tuple[str, str]]:
        """Return how many images are in each state, by target and state, with what jobs change."""
        found = self._totals.copy()
        for image_id, target in overlay:
            if row := self._rows.get(image_id):
                if target in row.cells:
                    found[target, row.cells[target].state] -= 1
                found[target, cell_at(image_id, row, target, overlay).state] += 1
        return found

    def _count(self, before: Mapping[str, Cell], after: Mapping[str, Cell]) -> None:
        """Keep the totals right when an image's cells change."""
        for target, new in after.items():
            old = before.get(target)
            if old is None or old.state != new.state:
                self._totals[target, new.state] += 1
                if old:
                    self._totals[target, old.state] -= 1
        for target, old in before.items():
            if target not in after:
                self._totals[target, old.state] -= 1


def cell_at(image_id: str, row: Row, target: str, overlay: Overlay) -> Cell:
    """Return the cell of an image on a target, with what jobs change."""
    cell = row.cells.get(target, UNKNOWN)
    # A warm one that is looked at again stays warm
    return cell if cell.state is State.WARM else overlay.get((image_id, target), cell)


def overlay_of(records: Iterable[JobRecord]) -> Overlay:
    """Return the cells that jobs in progress, or failed, change."""
    found = {}
    for record in records:
        key = record.job.key
        if key.handler != PREWARM:
            continue
        if record.state == IN_PROGRESS:
            found[key.image_id, key.target] = Cell(State.MAKING, record.doing)
        elif record.state == PARKED or (record.state == WAITING and record.job.attempt):
            found[key.image_id, key.target] = Cell(State.FAILED, record.reason)
    return found


@lru_cache(maxsize=1024)
def _as_listed(state: State, why: str) -> Cell:
    """Return the one object for all cells that a listing finds like this: most of a large cloud is
    warm."""
    return Cell(state, why)


def cell_of(outcome: Outcome, now: float) -> Cell | None:
    """Return the cell of an outcome of prewarming; None if the image has none on that target any
    more."""
    match outcome:
        case Done(detail, state=state):
            if state is None or state is State.GONE:
                return None
            return Cell(state, "" if state is State.WARM else sys.intern(detail), now)
        case Skip(reason, state):
            return Cell(state, sys.intern(reason), now)
        case Again(reason) | Park(reason):
            return Cell(State.COLD, sys.intern(reason), now)
        case never:
            assert_never(never)
