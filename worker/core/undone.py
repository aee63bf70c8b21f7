"""Undone: Image-Volumes that we made and somebody else deleted since, so that we do not make them
without end."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace

from worker.core.age import age, lasts
from worker.core.newest import Newest
from worker.core.target import ON

# (image, target) pairs remembered; those that were made the longest time ago are forgotten
KEEP = 100_000
# Limits of others show in no API: once a day it is tried whether they still hold, in seconds
HOLD_FOR = 86_400.0
# After so many times it is not made again
TIMES = 2
# So many images in a row of which Cinder made no cache entry are a matter of the target
IN_A_ROW = 3


@dataclass(frozen=True, slots=True)
class Past:
    """Fate of an Image-Volume that we made at `at`, in epoch seconds.

    `state` is of the image as it was then. `times` is how often it was undone or came to nothing,
    `gone_at` when that was found out of the last one, 0 while it stands, `refused` whether Cinder
    made none at all, and `why`.
    """

    at: float
    state: str
    volume_id: str = ""
    times: int = 0
    gone_at: float = 0.0
    refused: bool = False
    why: str = ""

    @property
    def is_held(self) -> bool:
        """Whether it was undone too often to be made again."""
        return bool(self.gone_at) and self.times >= TIMES


@dataclass(frozen=True, slots=True)
class Full:
    """Reason why nothing more fits on a target, until when that counts, in epoch seconds, and
    whether it is that Cinder made no cache entries of several images (`refused`)."""

    until: float
    why: str
    refused: bool = False


NOT_FULL = Full(0.0, "")


class Undone:
    """Memory of one process; after a restart each is made once more."""

    def __init__(self) -> None:
        self._pasts: Newest[tuple[str, str], Past] = Newest(KEEP)
        self._full: dict[str, Full] = {}
        self._refusals: dict[str, dict[str, str]] = {}
        self._spent: Newest[tuple[str, str], float] = Newest(KEEP)
        self._failed: Newest[tuple[str, str], float] = Newest(KEEP)
        self._made_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def made(self, image_id: str, target: str, *, state: str, volume_id: str, at: float) -> None:
        """An Image-Volume was made."""
        with self._lock:
            past = self._pasts.pop((image_id, target), None)
            times = past.times if past and past.state == state else 0
            self._pasts[image_id, target] = Past(at, state, volume_id, times)
            self._failed.pop((image_id, target), None)
            self._made_at[target] = at

    def cached(self, target: str) -> None:
        """Cinder made a cache entry on the target: it does not refuse all images any more."""
        with self._lock:
            self._refusals.pop(target, None)
            if self._full.get(target, NOT_FULL).refused:
                del self._full[target]

    def refused(
        self,
        image_id: str,
        target: str,
        *,
        state: str,
        at: float,
        why: str,
        owner: str = "",
        of_image: bool = False,
        stands: bool = False,
    ) -> Past:
        """Note that Cinder made no cache entry of the image, which is `owner`'s, and `why`. Unless
        that is a matter `of_image`, several images in a row are one of the target.

        Where an entry `stands`, they are not if one project has all of them.
        """
        with self._lock:
            past = self._pasts.pop((image_id, target), None)
            times = past.times if past and past.refused and past.state == state else 0
            past = Past(at, state, times=times + 1, gone_at=at, refused=True, why=why)
            self._pasts[image_id, target] = past
            self._spent[image_id, target] = at
            if of_image:
                return past
            images = self._refusals.setdefault(target, {})
            images[image_id] = owner
            several = len(images) >= IN_A_ROW and (len({*images.values()}) > 1 or not stands)
            if several and not self.full(target, now=at):
                self._full[target] = Full(at + HOLD_FOR, why, refused=True)
            return past

    def failed(self, image_id: str, target: str, *, at: float) -> bool:
        """Note that Cinder could make no volume of the image; whether it has made one of another
        image since this one failed first: then the fault is the image's."""
        with self._lock:
            first = self._failed.setdefault((image_id, target), at)
            return self._made_at.get(target, 0.0) > first

    def look(
        self, image_id: str, target: str, *, state: str, now: float, stale: bool = False
    ) -> Past | None:
        """Count that the last one is gone, and return its fate; None if that is no reason to
        wait. `stale`: a change of the image alone makes another one necessary."""
        with self._lock:
            past = self._pasts.get((image_id, target))
            if past is None:
                return None
            if past.state != state or (age(past.at, now) > HOLD_FOR and not past.gone_at):
                # It was changed, or was there for long: nobody fights over it
                del self._pasts[image_id, target]
                if not stale:
                    # But an owner who deletes it and changes the image has it made without end
                    self._spent[image_id, target] = past.at
                return None
            if past.is_held and age(past.at, now) > HOLD_FOR:
                # One more try, after which it is held again
                self._pasts[image_id, target] = replace(past, times=TIMES - 1)
                return None
            if not past.gone_at:
                past = self._pasts[image_id, target] = replace(
                    past, gone_at=now, times=past.times + 1
                )
            return past

    def held(self, image_id: str, target: str, *, state: str, now: float) -> Past | None:
        """Return the fate of one that is not made again for now, else None; changes nothing."""
        past = self._pasts.get((image_id, target))
        return (
            past
            if past and past.is_held and past.state == state and age(past.at, now) <= HOLD_FOR
            else None
        )

    def is_refused(self, image_id: str, target: str, *, state: str, why: str) -> bool:
        """Whether nothing came of the last one, for this reason; changes nothing."""
        past = self._pasts.get((image_id, target))
        return past is not None and past.refused and past.state == state and past.why == why

    def all_held(self, *, now: float) -> dict[tuple[str, str], Past]:
        """Those that are not made again for now, by image and target."""
        with self._lock:
            return {
                pair: past
                for pair, past in self._pasts.items()
                if past.is_held and age(past.at, now) <= HOLD_FOR
            }

    def standing(self, target: str, *, since: float) -> dict[str, Past]:
        """Those that stood on a target at a moment, in epoch seconds, by image."""
        with self._lock:
            return {
                image_id: past
                for (image_id, name), past in self._pasts.items()
                if name == target and not past.refused and not 0.0 < past.gone_at < since
            }

    def fill(self, target: str, why: str, *, now: float) -> None:
        """Nothing more fits on the target, as one that we made was undone for another."""
        self._full[target] = Full(now + HOLD_FOR, why)

    def full(self, target: str, *, now: float) -> str:
        """Reason why nothing more fits on the target; "" if it is not known to be full."""
        full = self._full.get(target, NOT_FULL)
        return full.why if lasts(full.until, now, HOLD_FOR) else ""

    def forget(self, image_id: str, target: str = "") -> None:
        """It was broken, or the image is gone: that is nobody's undoing."""
        with self._lock:
            for memory in (self._pasts, self._spent):
                for pair in _of(image_id, target, memory):
                    memory.pop(pair, None)

    def gave_up(self, image_id: str, target: str) -> None:
        """We have deleted it ourselves, as it was not wanted or for another one: that is nobody's
        undoing, but it has cost what it costs."""
        with self._lock:
            for pair in _of(image_id, target, self._pasts):
                if past := self._pasts.pop(pair, None):
                    self._spent[pair] = past.at

    def spent(self, image_id: str, target: str) -> float:
        """When one was last made that we deleted, or that came to nothing, in epoch seconds,
        whatever has changed since; 0 for never."""
        return self._spent.get((image_id, target), 0.0)

    def made_room(self, target: str) -> None:
        """Something on the target was deleted for good, so that something else may fit."""
        for memory in (self._full, self._refusals):
            for name in [name for name in memory if _is_at(name, target)]:
                memory.pop(name, None)

    def full_places(self, target: str, *, now: float) -> tuple[str, ...]:
        """Reasons why nothing more fits in a place of the target, or on all of it."""
        return tuple(
            full.why
            # One copy at once: others ask on threads of their own
            for name, full in tuple(self._full.items())
            if _is_at(name, target) and lasts(full.until, now, HOLD_FOR)
        )


def _of(image_id: str, target: str, pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(one, name) for one, name in pairs if one == image_id and _is_at(name, target)]


def _is_at(name: str, target: str) -> bool:
    """Whether the target of this name, or a place of it, is the one named; "" names all."""
    return not target or name == target or name.startswith(f"{target}{ON}")
