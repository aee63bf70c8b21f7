"""Listed: Image-Volumes in a bulk listing that are not needed. Asks no service."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from handlers import budget, image_volume, marks, policy, volume_status
from handlers.marks import is_ours
from handlers.reclaim.left_over import is_abandoned, looks_left
from handlers.serving import served
from worker.core import absence
from worker.core.cloud import Image, Volume
from worker.core.handler import Parts
from worker.core.target import Target


class Listed:
    """Finds volumes that are not needed, by the targets and budgets as of `prepare`."""

    def __init__(self, parts: Parts) -> None:
        self._rules = parts.policy
        self._targets = {target.name: target for target in parts.targets}
        self._uses = parts.uses
        self._learned = parts.learned
        self._now = parts.now
        self._resolved: tuple[Target, ...] = ()
        self._too_much: frozenset[str] = frozenset()

    async def prepare(
        self, resolved: tuple[Target, ...], volumes: Mapping[str, tuple[Volume, ...]]
    ) -> None:
        """Take over the targets, and find the volumes that exceed their budgets."""
        self._resolved = resolved
        lying = await budget.lying(volumes, resolved, self._uses, now=self._now())
        self._too_much = frozenset(
            one.volume.id
            for target in resolved
            if target.name in lying
            for one in budget.Shelf(target, lying[target.name]).excess()
        )

    def lack(self, image: Image | None, volumes: tuple[Volume, ...]) -> str:
        """Return why volumes of an image may have to be deleted, or a note be taken back; "" if
        not."""
        staying = [volume for volume in volumes if volume.status != "deleting"]
        if image is None:
            return f"image is not found: {_text(staying)}{_noted(staying)}" if staying else ""
        if any(absence.absence_of(volume).is_noted for volume in staying):
            return f"the image is back: {_text(staying)}{_noted(staying)}"
        return "; ".join(self._not_needed(image, staying))

    def bare(self, image: Image, volumes: Iterable[Volume]) -> list[Target]:
        """Return the targets where the image is said to have a location, and none of its volumes
        lies."""
        on = list(volumes)
        return [target for target in self._resolved if _is_bare(target, image, on)]

    def _not_needed(self, image: Image, volumes: list[Volume]) -> Iterator[str]:
        targets = [
            served(image, target, self._learned, now=self._now()) for target in self._resolved
        ]
        for target in targets if image.status == "active" else ():
            if _is_bare(target, image, volumes) and (
                refusal := policy.refusal(image, target, self._rules)
            ):
                yield (
                    f"not wanted on {target.name} any more, {refusal}: no volume for its "
                    f"location there"
                )
        for volume in volumes:
            if volume_status.is_stuck(volume):
                if is_ours(volume, self._targets):
                    yield (
                        f"Cinder does not delete it, see volume_stuck in the log: "
                        f"{_text([volume])}, {volume.status}"
                    )
            elif volume.name == image_volume.warming_name_of(image.id):
                if is_abandoned(volume, self._now()):
                    yield f"a throw-away volume was left behind: {_text([volume])}"
            elif looks_left(volume, image, volumes, self._resolved):
                advice = volume_status.stuck_advice(volume, located=False)
                stuck = "" if volume_status.may_be_deleted(volume, self._now()) else f", {advice}"
                yield f"an import of Glance's may have left it behind: {_text([volume])}{stuck}"
            else:
                yield from self._unwanted(volume, image, targets)

    def _unwanted(self, volume: Volume, image: Image, targets: Iterable[Target]) -> Iterator[str]:
        for target in targets:
            if not marks.may_go(volume, image, target):
                continue
            if image.status != "active":
                if volume.id in self._too_much:
                    # It may have to stay, and then another image's goes
                    yield f"the budget of target {target.name} is used up: {_text([volume])}"
            elif refusal := policy.refusal(image, target, self._rules):
                only = image.stores == frozenset({target.glance_store})
                unless = ", unless it is the image's only copy" if only else ""
                yield f"not wanted on {target.name} any more, {refusal}: {_text([volume])}{unless}"
            elif marks.is_outside(volume, image, target):
                yield f"{left_out(target)}: {_text([volume])}"
            elif volume.id in self._too_much:
                yield f"the budget of target {target.name} is used up: {_text([volume])}"


def left_out(target: Target) -> str:
    """Return the reason to delete a volume in a pool that the target does not take."""
    return f"[target:{target.name}] leaves its pool out"


def _is_bare(target: Target, image: Image, volumes: list[Volume]) -> bool:
    return target.glance_store in (image.stores or ()) and not any(
        image_volume.is_on(volume, target) for volume in volumes
    )


def _text(volumes: Iterable[Volume]) -> str:
    return ", ".join(f"volume {volume.id} of {volume.size} GiB" for volume in volumes)


def _noted(volumes: Iterable[Volume]) -> str:
    notes = {str(noted) for volume in volumes if (noted := absence.absence_of(volume)).is_noted}
    return f" ({'; '.join(sorted(notes))})" if notes else ""
