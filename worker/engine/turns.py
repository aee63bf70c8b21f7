"""Turns: projects take turns in a lane, so that a burst of one does not starve the others. Pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

PROJECTS = 10_000
"""Projects whose last turn is remembered."""
PAUSE = 10.0
"""Seconds between two sweeps of a lane, at least."""
SHARE = 20
"""A sweep is followed by a pause of this many times its length: it may cost the broker a twentieth
of its time."""


class Turns(Generic[T]):
    """Jobs waiting in one lane, by project.

    Next is the project with the fewest in progress, then whoever has waited longest.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[T]] = {}
        self._busy: Counter[str] = Counter()
        # An item that was put back and comes again has its turn before projects that were served since
        self._served: dict[str, int] = {}
        self._begun = 0

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, project: str, item: T) -> None:
        """Have an item wait behind the others of its project."""
        self._waiting.setdefault(project, deque()).append(item)

    def begin(self) -> T:
        """Return the item whose turn it is; it is in progress from now on. LookupError if
        nothing waits."""
        project = min(
            self._waiting, key=lambda one: (self._busy[one], self._served.get(one, 0)), default=None
        )
        if project is None:
            raise LookupError("nothing waits")
        item = self._waiting[project].popleft()
        if not self._waiting[project]:
            del self._waiting[project]
        self._busy[project] += 1
        self._begun += 1
        self._served.pop(project, None)
        self._served[project] = self._begun
        if len(self._served) > PROJECTS:
            del self._served[next(iter(self._served))]
        return item

    def end(self, project: str) -> None:
        """Note that one of the project's items is no longer in progress."""
        self._busy[project] -= 1
        if not self._busy[project]:
            del self._busy[project]

    def surplus(self, keep: int) -> list[T]:
        """Take out all but the `keep` that are next, the oldest of each project first."""
        kept: Counter[str] = Counter()
        for _ in range(min(keep, len(self))):
            left = (one for one, waiting in self._waiting.items() if kept[one] < len(waiting))
            kept[
                min(left, key=lambda one: (self._busy[one] + kept[one], self._served.get(one, 0)))
            ] += 1
        taken: list[T] = []
        for project, waiting in list(self._waiting.items()):
            taken += [waiting.pop() for _ in range(len(waiting) - kept[project])][::-1]
            if not waiting:
                del self._waiting[project]
        return taken

    def take(self, wanted: Callable[[T], bool]) -> list[T]:
        """Take out all that are `wanted`, the oldest of each project first."""
        taken: list[T] = []
        for project, waiting in list(self._waiting.items()):
            if any(map(wanted, waiting)):
                taken += filter(wanted, waiting)
                left = deque(item for item in waiting if not wanted(item))
                if left:
                    self._waiting[project] = left
                else:
                    del self._waiting[project]
        return taken

    def move_up(self, item: T, before: str, project: str) -> bool:
        """Whether an item of the project `before` now waits behind those of another one, where
        fewer are before it."""
        own = self._waiting.get(before, deque())
        place = next((number for number, one in enumerate(own) if one is item), 0)
        if place <= len(self._waiting.get(project, ())):
            return False
        del own[place]
        self.add(project, item)
        return True

    def clear(self) -> None:
        """Forget all items that wait."""
        self._waiting.clear()


class Sweep:
    """The sweeps through a lane for other projects' jobs: once through all jobs in it, then a
    pause."""

    def __init__(self) -> None:
        self._left = 0
        self._began = 0.0
        self._next = 0.0

    def due(self, depth: int, *, now: float) -> bool:
        """Whether to go on with a sweep, or to begin one through `depth` messages."""
        if self._left <= 0 < depth and now >= self._next:
            self._left, self._began = depth, now
        return self._left > 0

    def passed(self, count: int, *, now: float) -> None:
        """Note that `count` messages were put back to the end of the lane."""
        self._left -= count
        if self._left <= 0:
            self._next = now + max(PAUSE, SHARE * (now - self._began))
