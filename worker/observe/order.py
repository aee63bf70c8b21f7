"""The order of images in documents, and the choice of some of them. Pure."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from worker.core.state import State
from worker.observe.grid import UNKNOWN, Grid, Overlay, Row, cell_at, overlay_of
from worker.observe.job_records import JobRecord

T = TypeVar("T")
Test = Callable[[str, Row], bool]

BITS: Mapping[str, int] = {state: 1 << number for number, state in enumerate(State)}
"""A bit for each state: those that a person has to see come first, among thousands that are not
wanted."""
IMAGES = 200
"""Images in a document unless more are asked for."""
MOST_IMAGES = 1000
SORTS: Mapping[str, Callable[[tuple[str, Row]], Any]] = {
    # Images without a name that everybody may know come last
    "name": lambda one: (not one[1].name, one[1].name.lower(), one[0]),
    "size": lambda one: (-one[1].size, one[0]),
    "project": lambda one: (one[1].project, one[1].name.lower(), one[0]),
}
"""Orders besides the one in which people have to see images."""
RUN = 4096
"""Images that are sorted at once: the interpreter lets nobody else run meanwhile."""
LONG = 0.05
"""Seconds; an order that takes longer to make is made anew only for a share of the time."""
SHARE = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The images that a document is to have: `count` from number `start` on, of those that match.

    They match by a part of their id or name, by a part of their project's id, and on any target (or
    on `target`, if that is one) by their state and by a part of the reason; "" for all. Case does
    not matter. `sort` is one of SORTS; by default, what a person has to see comes first.
    """

    start: int = 0
    count: int = IMAGES
    text: str = ""
    state: str = ""
    target: str = ""
    project: str = ""
    reason: str = ""
    sort: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """All images in the order in which they are shown, as of a revision.

    `bits` are the states that each has. It was made at `at` and took `seconds` of the processor.
    """

    revision: int
    targets: tuple[str, ...]
    ids: list[str]
    bits: list[int]
    at: float
    seconds: float

    def serves(self, targets: tuple[str, ...], revision: int, now: float) -> bool:
        """Whether it is the order at `revision`, or is not worth making anew yet."""
        if self.targets != targets:
            return False
        return self.revision == revision or (
            self.seconds > LONG and now - self.at < SHARE * self.seconds
        )

    def matching(self, choice: Choice, grid: Grid, overlay: Overlay) -> list[str]:
        """Return the ids of the images that match, in order."""
        ids = self.ids
        if choice.state:
            bit = BITS.get(choice.state, 0)
            ids = [image_id for image_id, bits in zip(ids, self.bits, strict=True) if bits & bit]
        tests = [*_tests(choice), *_reason_tests(choice, self.targets, overlay)]
        if tests:
            ids = [
                image_id
                for image_id in ids
                if (row := grid.row(image_id)) and all(test(image_id, row) for test in tests)
            ]
        if key := SORTS.get(choice.sort):
            rows = ((image_id, row) for image_id in ids if (row := grid.row(image_id)))
            ids = [image_id for image_id, _ in sorted_in_runs(list(rows), key)]
        return ids


def _tests(choice: Choice) -> Iterator[Test]:
    """Yield what an image and its row have to pass."""
    if text := choice.text.strip().lower():
        yield lambda image_id, row: text in image_id or text in row.name.lower()
    if project := choice.project.strip().lower():
        yield lambda _, row: project in row.project.lower()


def _reason_tests(choice: Choice, targets: tuple[str, ...], overlay: Overlay) -> Iterator[Test]:
    """Yield the test for the reason, if there is one."""
    if reason := choice.reason.strip().lower():
        yield lambda image_id, row: any(
            reason in cell_at(image_id, row, target, overlay).why.lower() for target in targets
        )


def arrange(
    grid: Grid,
    ids: Iterable[str],
    records: Iterable[JobRecord],
    *,
    targets: tuple[str, ...],
    revision: int,
) -> Order:
    """Return the images in order, with what their jobs change. Takes long where they are many."""
    # Of the processor: on a busy machine a wait for it makes no order dear
    began = time.thread_time()
    overlay = overlay_of(records)
    concerned = {image_id for image_id, _ in overlay}
    # Images with the same lowest bit are shown together. Texts and numbers only: a hundred thousand
    # tuples would make the garbage collector look at the whole process, in one go
    groups: dict[int, list[str]] = {}
    found: dict[str, int] = {}
    unknown = BITS[UNKNOWN.state]
    for image_id in ids:
        if (row := grid.row(image_id)) is None:
            continue
        bits, cells = 0, row.cells
        for target in targets:
            if image_id in concerned:
                bits |= BITS.get(cell_at(image_id, row, target, overlay).state, 1)
            else:
                cell = cells.get(target)
                bits |= BITS.get(cell.state, 1) if cell else unknown
        groups.setdefault(bits & -bits, []).append(f"{row.name}\0{image_id}")
        found[image_id] = bits
    ordered = [
        key.rpartition("\0")[2]
        for _, keys in sorted(groups.items())
        for key in sorted_in_runs(keys, str)
    ]
    return Order(
        revision=revision,
        targets=targets,
        ids=ordered,
        bits=[found[image_id] for image_id in ordered],
        at=time.monotonic(),
        seconds=time.thread_time() - began,
    )


def sorted_in_runs(items: list[T], key: Callable[[T], Any]) -> Iterator[T]:
    """Yield the items in the order of their keys, sorted in runs, between which others get their
    turn."""
    return heapq.merge(
        *(sorted(items[at : at + RUN], key=key) for at in range(0, len(items), RUN)), key=key
    )
