"""Judge: what the worker may do to the cloud, by what the test itself knows; it asks nothing of the
worker's code.

Each write is judged right before its effect. What the worker has read may be older than what is
true then, but no older than the last moment at which no job was worked on: what has changed since
(`*_lately`) is no reproach to it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from worker.core.cloud import GIB, Image, Location, Volume
from worker.core.target import Policy, Reclaiming, Target
from worker.testing.fake_cloud import PROJECT, FakeCloud

# Spelled out here: these names are what other people's tools and clouds of today hold
TAG, ORIGIN, FRESH = (
    "image_volume_worker",
    "image_volume_worker_origin",
    "image_volume_worker_updated_at",
)
MISSING = "image_volume_worker_missing"
MARKS = ("glance_image_id", "image_owner", "image_size", "readonly", TAG)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How a worker is configured."""

    targets: tuple[Target, ...]
    policy: Policy
    reclaiming: Reclaiming

    @property
    def reclaims(self) -> bool:
        return self.reclaiming.enabled and not self.reclaiming.dry_run

    def wants(self, image: Image) -> bool:
        """Whether the image is to be warm, as README.md says it; the targets here differ in nothing
        that matters."""
        wish = image.properties.get("image_volume_prewarm", "")
        shape = (image.status, image.disk_format, image.container_format) == (
            "active",
            "raw",
            "bare",
        )
        if not shape or wish == "no" or image.owner in self.policy.exclude_projects:
            return False
        return (
            wish == "yes" and image.visibility == "public"
        ) or image.visibility in self.policy.visibilities


@dataclass(kw_only=True)
class Judge:
    """`faults` are the worker's; `foreign` and `operators` are volumes as their owners left
    them."""

    cloud: FakeCloud
    setup: Setup
    faults: list[str] = field(default_factory=list)
    foreign: dict[str, Volume] = field(default_factory=dict)
    operators: dict[str, Volume] = field(default_factory=dict)
    tampered: set[str] = field(default_factory=set)
    kept: defaultdict[str, set[Location]] = field(default_factory=lambda: defaultdict(set))
    shaken_lately: set[str] = field(default_factory=set)
    unwanted_lately: set[str] = field(default_factory=set)
    gone_lately: dict[str, int] = field(default_factory=dict)
    lost: dict[str, float] = field(default_factory=dict)

    # What the test tells it

    def shake(self, volume_id: str) -> None:
        """An admin has done something to an Image-Volume."""
        self.shaken_lately.add(volume_id)
        for own in self.kept.values():
            own -= {location for location in own if location.volume_id == volume_id}

    def forget_image(self, image: Image) -> None:
        """Its owner is about to delete the image; Glance deletes its locations' volumes, whoever's
        they are."""
        if self.cloud.delayed:
            self.lose(image)
            return
        self.gone_lately[image.id] = gibibytes(image)
        self.kept.pop(image.id, None)
        for location in self.cloud.locations[image.id]:
            self.foreign.pop(location.volume_id, None)

    def lose(self, image: Image) -> None:
        """Glance is about to find the image no more, though nobody deletes it."""
        self.kept.pop(image.id, None)
        self.gone_lately[image.id] = gibibytes(image)
        now = self.cloud.now()
        self.lost |= {
            location.volume_id: now
            for location in self.cloud.locations[image.id]
            if location.volume_id
        }

    def find(self, image_ids: list[str]) -> None:
        """Glance finds these images again."""
        for image_id in image_ids:
            for location in self.cloud.locations[image_id]:
                self.lost.pop(location.volume_id, None)

    def look(self, *, quiet: bool) -> None:
        """Take in the cloud as it is after a step; `quiet` if no job goes by anything older."""
        if quiet:
            self.shaken_lately.clear()
            self.unwanted_lately.clear()
            self.gone_lately.clear()
        for image in self.cloud.images.values():
            if not self.setup.wants(image):
                self.unwanted_lately.add(image.id)
            for location in self.cloud.locations[image.id]:
                whole = (
                    self.cloud.is_whole(location) and location.volume_id not in self.shaken_lately
                )
                if whole and not self.is_prewarmed(location.volume_id):
                    self.kept[image.id].add(location)

    def check(self) -> None:
        """What must be so after every step."""
        assert not self.faults, "; ".join(self.faults)
        assert not self.cloud.torn, (
            f"locations of images that are there were deleted: {self.cloud.torn}"
        )
        for whose, volumes in (
            ("another project's", self.foreign),
            ("the operator's own", self.operators),
        ):
            for volume in volumes.values():
                assert self.cloud.volumes.get(volume.id) == volume, (
                    f"{whose} volume was touched: {volume}"
                )
        for image_id, locations in self.kept.items():
            lost = locations - set(self.cloud.locations[image_id])
            assert not lost, f"image {image_id} has lost what pre-warming has not made: {lost}"
        for image in self.cloud.images.values():
            assert image.status == "queued" or self.cloud.locations[image.id], (
                f"{image.id} has no location left"
            )

    # What it knows

    def is_prewarmed(self, volume_id: str) -> bool:
        """Whether pre-warming has asked for the volume; the clones that uploads are made of are
        something else."""
        volume = self.cloud.volumes.get(volume_id)
        return self.cloud.asked_by.get(volume_id) == PROJECT and not (
            volume and volume.source_volid
        )

    def is_anchor(self, location: Location) -> bool:
        """Whether the location is whole, the image's, and nothing that eviction may remove as
        well."""
        volume = self.cloud.volumes.get(location.volume_id)
        if location.volume_id in self.foreign or location.volume_id in self.operators:
            return False
        ours = (
            self.is_prewarmed(location.volume_id)
            and volume is not None
            and ORIGIN in volume.metadata
        )
        return self.cloud.is_whole(location) and not ours

    def is_located(self, volume_id: str) -> bool:
        return any(
            location.volume_id == volume_id
            for own in self.cloud.locations.values()
            for location in own
        )

    def volumes_of(self, image_id: str) -> Iterator[Volume]:
        """The image's Image-Volumes in the internal project, not the throw-away ones, nor the
        operator's."""
        for volume in self.cloud.volumes.values():
            if (
                volume.name == f"image-{image_id}"
                and not volume.foreign
                and volume.id not in self.operators
            ):
                yield volume

    def targets_of(self, volume: Volume) -> Iterator[Target]:
        return (target for target in self.setup.targets if target.volume_type == volume.volume_type)

    # What it says to a write

    def hear(self, verb: str, *about: object) -> None:
        """One write of the worker is about to have its effect."""
        match verb, about:
            case "delete_volume", (str(volume_id),):
                self._delete(self.cloud.volumes[volume_id])
            case "remove_from_store", (str(image_id), Location() as location):
                self._remove(image_id, location)
            case (("set_metadata" | "set_readonly"), (str(volume_id),)):
                self._is_ours(verb, self.cloud.volumes[volume_id])
            case (("add_location" | "import_location"), (str(image_id), str(volume_id))):
                self._locate(verb, image_id, volume_id)

    def _blame(self, text: str) -> None:
        self.faults.append(text)

    def _is_ours(self, verb: str, volume: Volume) -> bool:
        if volume.foreign or volume.id in self.operators:
            self._blame(f"{verb}: not ours: {volume}")
            return False
        return True

    def _locate(self, verb: str, image_id: str, volume_id: str) -> None:
        volume = self.cloud.volumes.get(volume_id)
        if volume is None or volume_id in self.shaken_lately:
            return
        if self._is_ours(verb, volume) and volume.status not in ("available", "in-use"):
            self._blame(f"{verb}: {image_id} gets a location that is {volume.status}: {volume}")

    def _delete(self, volume: Volume) -> None:
        if not self._is_ours("delete_volume", volume):
            return
        kind, _, image_id = volume.name.partition("-")
        image = self.cloud.images.get(image_id)
        if image_id in self.cloud.pending and self.is_located(volume.id):
            # If nobody has heard that it is pending, it looks lost
            self._delete_lost(volume)
        elif self.is_located(volume.id):
            self._blame(f"delete_volume: it is a location of an image: {volume}")
        elif volume.id in self.lost:
            self._delete_lost(volume)
        elif image is None:
            if not self.setup.reclaims and image_id not in self.gone_lately:
                self._blame(f"delete_volume: reclaim may not delete anything: {volume}")
        elif volume.source_volid:
            # What Cinder has cloned and left behind; what we have cloned for an upload that has
            # other data now
            pass
        elif volume.id not in self.cloud.asked_by:
            self._blame(
                f"delete_volume: its image is there, and nobody but its owner has asked for it: "
                f"{volume}"
            )
        elif kind == "image" and volume.status == "available" and not self._may_go(image, volume):
            self._blame(f"delete_volume: its image is there, and wants it: {volume}")

    def _delete_lost(self, volume: Volume) -> None:
        """It was the location of an image that nobody has deleted."""
        rules, now = self.setup.reclaiming, self.cloud.now()
        long_ago = [
            one
            for one, since in self.lost.items()
            if now - since >= rules.grace and self._is_noted(one)
        ]
        if volume.id not in long_ago:
            self._blame(
                f"delete_volume: its image is not found for {now - self.lost[volume.id]:.0f} s "
                f"only: {volume}"
            )
        if len(long_ago) > rules.limit(0):
            self._blame(
                f"delete_volume: the brake: {len(long_ago)} volumes of images that nobody has "
                f"deleted: {volume}"
            )

    def _is_noted(self, volume_id: str) -> bool:
        """Whether a worker has looked for the volume's image, and has not found it."""
        volume = self.cloud.volumes.get(volume_id)
        return volume is not None and volume.metadata.get(MISSING, "") not in ("", "pending_delete")

    def _remove(self, image_id: str, location: Location) -> None:
        left = [one for one in self.cloud.locations[image_id] if one is not location]
        image, volume = self.cloud.images[image_id], self.cloud.volumes.get(location.volume_id)
        about = f"remove_from_store: {location} of {image_id}"
        if self.shaken_lately & {one.volume_id for one in (location, *left)}:
            return
        if not any(self.cloud.is_whole(one) for one in left):
            self._blame(f"{about}: nothing whole is left")
        if not self.cloud.is_whole(location):
            return
        if not location.volume_id or not self.is_prewarmed(location.volume_id):
            self._blame(f"{about}: it is whole, and pre-warming has not made it")
            return
        assert volume
        if any(one.store == location.store and self.cloud.is_whole(one) for one in left):
            return
        if not any(self.is_anchor(one) for one in left):
            self._blame(f"{about}: what is left may be removed as well")
        if not self._may_go(image, volume):
            self._blame(f"{about}: the image is there, and wants it")

    def _may_go(self, image: Image, volume: Volume) -> bool:
        """Whether a whole Image-Volume of an image that is there may be deleted."""
        twins = [
            other
            for other in self.volumes_of(image.id)
            if other.id != volume.id
            and other.volume_type == volume.volume_type
            and other.status == "available"
        ]
        if twins:
            return True
        if not self.setup.reclaims:
            return False
        unwanted = image.id in self.unwanted_lately or not self.setup.wants(image)
        return unwanted or any(self._is_tight(target) for target in self.targets_of(volume))

    def _is_tight(self, target: Target) -> bool:
        """Whether what lies on the target and what may come there is more than its budget."""
        if not target.has_budget:
            return False
        lying: dict[str, int] = {}
        for volume in self.cloud.volumes.values():
            mine = volume.volume_type == target.volume_type and volume.name.startswith("image-")
            if mine and volume.id in self.cloud.asked_by and not volume.source_volid:
                lying[volume.id] = volume.size
        there = {self.cloud.volumes[volume_id].name.removeprefix("image-") for volume_id in lying}
        coming = {
            image.id: gibibytes(image)
            for image in self.cloud.images.values()
            if image.id not in there
        }
        sizes = [*lying.values(), *(coming | self.gone_lately).values()]
        most_count, most_size = target.max_count, target.max_gigabytes
        return bool(
            (most_count and len(sizes) > most_count) or (most_size and sum(sizes) > most_size)
        )

    # What must have come of it all

    def verdicts(self) -> Iterator[str]:
        """What is not as it should be once nothing is in the way any more."""
        for volume in self.cloud.volumes.values():
            if not volume.foreign and volume.id not in self.operators:
                yield from self._left_over(volume)
        for image in self.cloud.images.values():
            if image.status == "queued":
                yield from self._not_completed(image)
            if image.status != "active" or not self.cloud.has_data(image.id):
                continue
            for target in self.setup.targets:
                if self.setup.wants(image):
                    yield from (
                        f"{image.id} on {target.name}: {text}"
                        for text in self._not_warm(image, target)
                    )
                elif self.setup.reclaims:
                    yield from self._not_cooled(image, target)
        if self.setup.reclaims:
            for target in self.setup.targets:
                yield from self._too_much(target)

    def _left_over(self, volume: Volume) -> Iterator[str]:
        kind, _, image_id = volume.name.partition("-")
        listed = any(image.status in ("active", "queued") for image in self.cloud.images.values())
        if kind == "warm" and self.setup.reclaims and listed:
            yield f"a throw-away volume is left: {volume}"
        elif (
            kind == "image"
            and image_id not in self.cloud.images
            and self._is_provable(volume, image_id)
            and listed
        ):
            yield f"it is left of an image that is gone: {volume}"

    def _is_provable(self, volume: Volume, image_id: str) -> bool:
        """Whether the worker can know in the end that the volume is ours, and its image deleted."""
        missing = [
            one
            for one in self.cloud.volumes.values()
            if one.name.startswith("image-")
            and not one.foreign
            and one.name[6:] not in self.cloud.images
        ]
        braked = len(missing) > self.setup.reclaiming.limit(0)
        targets = {target.name for target in self.setup.targets}
        ours = (
            volume.metadata.get(TAG, "upload") in targets | {"upload"}
            and volume.id in self.cloud.asked_by
        )
        mine = (
            volume.metadata.get("image_owner") in (PROJECT, None)
            or TAG in volume.metadata
            or volume.source_volid
        )
        pending = image_id in self.cloud.pending or volume.metadata.get(MISSING) == "pending_delete"
        return self.setup.reclaims and ours and bool(mine) and not braked and not pending

    def _not_completed(self, image: Image) -> Iterator[str]:
        named, _, _ = image.properties.get("image_volume_source", "").partition("/")
        source = self.cloud.volumes.get(named)
        possible = source and source.project_id == image.owner and source.status == "available"
        cinders = any(
            self.cloud.asked_by.get(volume.id) == "cinder" for volume in self.volumes_of(image.id)
        )
        if possible and image.disk_format == "raw" and not cinders:
            yield f"the upload was not completed: {image}"

    def _not_warm(self, image: Image, target: Target) -> Iterator[str]:
        asked = (
            image.properties.get("image_volume_prewarm") == "yes" and image.visibility == "public"
        )
        if target.has_budget or (self.setup.policy.when == "used" and not asked):
            return
        stored = [
            one
            for one in self.cloud.locations[image.id]
            if one.store == f"cinder-{target.volume_type}"
        ]
        if any(one.volume_id in self.foreign for one in stored):
            return
        # Where nothing may be deleted, a location without a whole volume stays
        if any(not self.cloud.is_whole(one) for one in stored) and not (
            self.setup.reclaims and self._is_safe_without(stored, image)
        ):
            return
        here = [
            volume
            for volume in self.volumes_of(image.id)
            if volume.volume_type == target.volume_type
        ]
        located = [volume for volume in here if any(one.volume_id == volume.id for one in stored)]
        located = [volume for volume in located if not volume.status.startswith("error")]
        if target.strategy == "cache" and not located:
            serving = [volume for volume in here if volume.metadata.get(FRESH) == image.updated_at]
            others = [
                volume for volume in here if ORIGIN in volume.metadata and volume not in serving
            ]
        else:
            serving = located
            others = [
                volume for volume in here if TAG in volume.metadata and FRESH not in volume.metadata
            ]
            others = [volume for volume in others if volume not in serving]
        # Of several locations in a store Glance removes the first: a broken one behind it stays,
        # and harms nobody
        whole = [one for one in stored if self.cloud.is_whole(one)]
        if len(serving) != 1 or (target.strategy != "cache" and whole != stored[:1]):
            yield f"not warm once: {here}, {self.cloud.locations[image.id]}"
            return
        if others and self.setup.reclaims:
            yield f"more than once: {here}"
        right = dict(
            zip(MARKS, (image.id, image.owner, str(image.size), "True", target.name), strict=True)
        )
        wrong = {
            key: serving[0].metadata.get(key)
            for key in MARKS
            if serving[0].metadata.get(key) != right[key]
        }
        if wrong or serving[0].status != "available":
            yield f"no clone can be made of it, {wrong} is not {right}: {serving[0]}"

    def _is_safe_without(self, stored: list[Location], image: Image) -> bool:
        """Whether a whole location is left without these; one whose volume somebody else controls
        is none."""
        others = [one for one in self.cloud.locations[image.id] if one not in stored]
        return any(self.cloud.is_whole(one) and one.volume_id not in self.foreign for one in others)

    def _removable(self, volume: Volume, image: Image) -> bool:
        """Whether nothing is in the way of eviction."""
        locations = self.cloud.locations[image.id]
        mine = next((one for one in locations if one.volume_id == volume.id), None)
        others = [one for one in locations if one is not mine]
        if mine is None:
            return True
        twice = any(one.store == mine.store for one in others)
        anchors = [one for one in others if self.is_anchor(one)]
        if image.owner == PROJECT:
            # What nobody has marked could be the owner's or ours: nothing is let go of on the
            # strength of it
            anchors = [
                one
                for one in anchors
                if not one.volume_id or TAG in self.cloud.volumes[one.volume_id].metadata
            ]
        return not twice and bool(anchors)

    def _not_cooled(self, image: Image, target: Target) -> Iterator[str]:
        for volume in self.volumes_of(image.id):
            mine = volume.volume_type == target.volume_type and self.is_prewarmed(volume.id)
            # Of an image of the internal project's own, a copy that was not marked before a crash
            # may be its owner's
            known = ORIGIN in volume.metadata or image.owner != PROJECT
            if mine and known and volume.id not in self.tampered and self._removable(volume, image):
                yield f"{image.id} is not wanted on {target.name}, and still there: {volume}"

    def _too_much(self, target: Target) -> Iterator[str]:
        lying = [
            volume
            for image in self.cloud.images.values()
            for volume in self.volumes_of(image.id)
            if volume.metadata.get(TAG) == target.name and ORIGIN in volume.metadata
            if image.status == "active" and self._removable(volume, image)
        ]
        size = sum(volume.size for volume in lying)
        most_count, most_size = target.max_count, target.max_gigabytes
        if (most_count and len(lying) > most_count) or (most_size and size > most_size):
            yield (
                f"{target.name} holds {len(lying)} of {most_count}, {size} GiB of {most_size}: "
                f"{lying}"
            )


def gibibytes(image: Image) -> int:
    """GiB that a volume needs to hold the image."""
    return -(-image.size // GIB)
