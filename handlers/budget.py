"""Budget: the limit for what prewarm makes on a target; the least recently used is deleted first.
Pure."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from handlers import image_volume, last_use, marks
from worker.core.cloud import Image, Volume
from worker.core.target import Target
from worker.core.uses import Uses


class NoRoom(Exception):
    """The target's budget has no room for the image; the text says why."""


@dataclass(frozen=True, slots=True)
class Held:
    """An Image-Volume that pre-warming has put there; `used` in epoch seconds, `size` in GiB."""

    used: float
    image_id: str
    volume: Volume

    @property
    def size(self) -> int:
        """GiB that it takes of the budget."""
        return self.volume.size

    @property
    def owner(self) -> str:
        """The project whose image it is, as far as the volume says."""
        return self.volume.metadata.get("image_owner", "")


@dataclass(frozen=True, slots=True)
class Coming:
    """An image on its way to a target: its GiB, since when, and whose it is (`owner_of`)."""

    size: int
    since: float = 0.0
    owner: str = ""


def held(volumes: Iterable[Volume], target: Target, uses: Uses, *, now: float) -> list[Held]:
    """Those of the volumes that count against the target's budget, least recently used first."""
    counted = (
        (volume, image_volume.image_of(volume))
        for volume in volumes
        if marks.is_prewarmed(volume, target)
    )
    return sorted(
        (
            Held(last_used(volume, image_id, target, uses, now=now), image_id, volume)
            for volume, image_id in counted
        ),
        key=lambda one: (one.used, one.volume.id),
    )


async def lying(
    volumes: Mapping[str, tuple[Volume, ...]],
    targets: Iterable[Target],
    uses: Uses,
    *,
    now: float,
) -> dict[str, list[Held]]:
    """Return what is `held` on each target that has a budget, by its name. Others have their turn
    in between."""
    bounded = [target for target in targets if target.has_budget]
    found: dict[str, list[Volume]] = {target.name: [] for target in bounded}
    if bounded:
        # To look at them takes time: once for all targets
        for number, own in enumerate(volumes.values()):
            for target in bounded:
                found[target.name] += (
                    volume for volume in own if marks.is_prewarmed(volume, target)
                )
            if number % 1000 == 0:
                await asyncio.sleep(0)
    return {target.name: held(found[target.name], target, uses, now=now) for target in bounded}


def last_used(volume: Volume, image_id: str, target: Target, uses: Uses, *, now: float) -> float:
    """Return the time when a volume was last made of it, as far as we know, or else when it was
    made itself."""
    return max(
        volume.created_epoch, last_use.recorded_use(volume, now), uses.last(image_id, target.name)
    )


def since(image: Image, target: Target, uses: Uses) -> float:
    """Return the time that an image that is not there counts by: when it was last used there, or
    else made."""
    return max(image.created_epoch, uses.last(image.id, target.name))


def owner_of(image: Image) -> str:
    """Return the project whose share of a budget the image takes; "" for a public image, which is
    there for everybody."""
    return "" if image.visibility == "public" else image.owner


class Shelf:
    """A target's budget and what lies on it; `coming` are the images on their way, by id, `wasted`
    those for which others had to go, and of which nothing came: they count for their projects.

    `staying` are volumes that can't go. `size` in GiB and `count` are what is taken of the budget.
    A project that takes more than the target's `project_share` of a full budget gets room in the
    place of its own images alone, so that one project's images do not evict everybody's.
    """

    def __init__(
        self,
        target: Target,
        lying: Iterable[Held],
        coming: Mapping[str, Coming] | None = None,
        *,
        staying: Iterable[str] = (),
        wasted: Iterable[Coming] = (),
    ) -> None:
        self._target = target
        self._held = list(lying)
        self._reserved = frozenset(coming or ())
        self._staying = frozenset(staying)
        self._wasted = tuple(wasted)
        there = {one.image_id for one in self._held}
        self._coming = [one for image_id, one in (coming or {}).items() if image_id not in there]
        self.size = sum(one.size for one in self._held) + sum(one.size for one in self._coming)
        self.count = len(self._held) + len(self._coming)

    def excess(self) -> list[Held]:
        """Choose the volumes to delete where the budget is smaller than what lies there."""
        return self._victims(0, 0, before=float("inf"))

    def victims(self, size: int, *, since: float, owner: str = "") -> list[Held]:
        """Choose the volumes to delete for an image of `size` GiB, last used at `since`; NoRoom if
        none will do. `owner` is as `owner_of` says."""
        name, most = self._target.name, self._target.max_gigabytes
        if most and size > most:
            raise NoRoom(f"image of {size} GiB is above max_gigabytes = {most} of target {name}")
        taken = self._taken(owner)
        beyond = self._is_beyond_share(size, taken)
        own = beyond and bool(taken)
        going = self._victims(size, 1, before=since, owner=owner if own else None)
        # The first one of a project may have anybody's room, however small the budget is, but not
        # everybody's: nobody knows yet whether anything comes of it, or whether it ever goes again
        swept = beyond and not own and len(going) > 1
        if swept or not self._fits(size - sum(one.size for one in going), 1 - len(going)):
            limits = (
                f"{self.size} of {most} GiB" if most else "",
                self._counted(),
                self._immovable(),
            )
            full = ", ".join(text for text in limits if text)
            if own:
                raise NoRoom(
                    f"target {name} is full ({full}), and its project's images may take "
                    f"{self._target.project_share:.0%} of it; its others were used later"
                )
            if swept:
                raise NoRoom(
                    f"target {name} is full ({full}), and an image above its project's share, "
                    f"{self._target.project_share:.0%}, takes the place of one other at most"
                )
            raise NoRoom(
                f"target {name} is full ({full}), and what is there was used later than this image"
            )
        return going

    def take(self, size: int, *, since: float, owner: str = "") -> None:
        """Count in an image of `size` GiB, last used at `since`, in the place of what goes for it;
        NoRoom as above."""
        going = self.victims(size, since=since, owner=owner)
        for one in going:
            self._held.remove(one)
        self.size += size - sum(one.size for one in going)
        self.count += 1 - len(going)

    def _counted(self) -> str:
        most = self._target.max_count
        return f"{self.count} of {most} Image-Volumes" if most else ""

    def _immovable(self) -> str:
        """Return how much of it can't go, with the first of the images; "" if all can."""
        stays = [one for one in self._held if one.volume.id in self._staying]
        if not stays:
            return ""
        size, more = sum(one.size for one in stays), " and others" if len(stays) > 1 else ""
        return f"{size} GiB of it cannot be evicted: image {stays[0].image_id}{more}"

    def _fits(self, size: int, count: int) -> bool:
        most_size, most_count = self._target.max_gigabytes, self._target.max_count
        return (not most_size or self.size + size <= most_size) and (
            not most_count or self.count + count <= most_count
        )

    def _taken(self, owner: str) -> list[int] | None:
        """The GiB of each of the project's images; None if it needs no share."""
        if not owner or self._target.project_share >= 1.0:
            return None
        taking: tuple[Held | Coming, ...] = (*self._held, *self._coming, *self._wasted)
        return [one.size for one in taking if one.owner == owner]

    def _is_beyond_share(self, size: int, taken: list[int] | None) -> bool:
        """Whether a project's images take more than its share of the budget, with one more of
        `size` GiB."""
        share = self._target.project_share
        most_size, most_count = self._target.max_gigabytes, self._target.max_count
        return taken is not None and bool(
            (most_size and sum(taken) + size > share * most_size)
            or (most_count and len(taken) + 1 > share * most_count)
        )

    def _victims(
        self, size: int, count: int, *, before: float, owner: str | None = None
    ) -> list[Held]:
        """The least recently used ones that have to go, as far as there are such; with `owner` of
        that project alone."""
        going: list[Held] = []
        for one in self._held:
            if self._fits(size, count) or one.used >= before:
                break
            if owner is not None and one.owner != owner:
                continue
            # One that is on its way, or that somebody reads, can't go now
            busy = one.volume.status != "available" or one.image_id in self._reserved
            if not busy and one.volume.id not in self._staying:
                going.append(one)
                size, count = size - one.size, count - 1
        return going
