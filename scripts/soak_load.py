"""The load of the soak: users who make, deactivate, replace and delete images, volumes and uploads,
and keep book."""

from __future__ import annotations

import hashlib
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import requests.exceptions
from keystoneauth1.exceptions import ClientException

from scripts.cloud.operate import TARGETS
from scripts.cloud.people import MIB, Person, data

# What a user's client raises when a service does not do what it is asked
REFUSED = (RuntimeError, ClientException, requests.exceptions.RequestException, OSError)
NAME = "soak"
# MiB of data of an image, and of the image that source volumes are made of
SMALL, SOURCE = 4, 16
GIB = 1 << 30
# How many of each a user has at most: two cores have to cope, and the devcloud's pool has to hold
# it all
MOST = {"image": 8, "upload": 3, "volume": 4}
# Seconds that an image stays deactivated
INACTIVE = 20.0
# Seconds after which Cinder does no more about a volume
LOST = 180.0


@dataclass
class Item:
    """An image or a volume of a user's; `image` is what a volume is made of."""

    id: str
    kind: str
    born: float
    image: str = ""
    # creating, there, inactive, deleting (asked for, not confirmed), gone, broken
    state: str = "there"
    since: float = 0.0


@dataclass
class User:
    """One user's work, step by step, from a random number generator of its own."""

    person: Person
    dice: random.Random
    disturbed: Callable[[float, float], str]
    """The faults in the services themselves between two times."""
    items: list[Item] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    explained: Counter[str] = field(default_factory=Counter)
    """Failures of services, with the fault that explains each."""
    problems: list[str] = field(default_factory=list)
    """Failures of services that no fault explains."""
    source: str = ""
    content: str = ""
    hash_of_image: str = ""

    def prepare(self) -> None:
        """Make the volume that uploads are made of, and compute what their content has to be."""
        image = self.person.image(f"{NAME}-source", mebibytes=SOURCE, image_volume_prewarm="no")
        self.source = self.person.volume(image, self.dice.choice(TARGETS)).id
        self.person.delete_image(image)
        digest = hashlib.sha256(data(SOURCE).read_bytes())
        for _ in range(GIB // MIB - SOURCE):
            digest.update(bytes(MIB))
        self.content = digest.hexdigest()
        self.hash_of_image = hashlib.sha256(data(SMALL).read_bytes()).hexdigest()

    def work(self, leave: threading.Event, pause: float) -> None:
        """Work until told to leave, a step every `pause` seconds or so."""
        steps = {
            self.make_image: 6, self.make_upload: 2, self.make_volume: 4, self.delete_image: 4, self.delete_volume: 3,
            self.deactivate: 2, self.replace: 2,
        }  # fmt: skip
        while not leave.wait(self.dice.uniform(0.5, 1.5) * pause):
            self.tidy()
            (step,) = self.dice.choices(list(steps), list(steps.values()))
            step()

    def of(self, kind: str, *states: str) -> list[Item]:
        """The items of a kind that are in one of these states."""
        return [item for item in self.items if item.kind == kind and item.state in states]

    def alive(self) -> list[Item]:
        """The images and uploads that this user has and wants."""
        return [*self.of("image", "there", "inactive"), *self.of("upload", "there")]

    def try_to(self, what: str, call: Callable[[], object], *, may_fail: bool = False) -> bool:
        """Whether a request was done. A failure has to be explained by a fault, unless services may
        refuse this."""
        began = time.monotonic()
        try:
            call()
        except REFUSED as error:
            # Some answers are pages of HTML
            said = " ".join(re.sub(r"<[^>]*>", " ", str(error)).split())
            self.failed(f"{what}: {said[:160]}", began, may_fail=may_fail)
            return False
        self.done[what] += 1
        return True

    def failed(self, text: str, began: float, *, may_fail: bool = False) -> None:
        """Note what a service has failed, with the faults that may explain it."""
        why = self.disturbed(began, time.monotonic())
        if why:
            self.explained[f"{text} [{why}]"] += 1
        elif may_fail:
            self.done["refused and asked again"] += 1
        else:
            self.problems.append(f"{self.person.connection.config.name}: {text}")

    def make_image(self) -> None:
        """An image with data."""
        if len(self.of("image", "there", "inactive")) >= MOST["image"]:
            return
        made: list[str] = []
        visibility = self.dice.choice(("private", "shared", "community"))
        self.try_to(
            "image recorded", lambda: made.append(self.person.queued(NAME, visibility=visibility))
        )
        if not made:
            return
        item = Item(made[0], "image", time.monotonic(), state="creating")
        self.items.append(item)
        filled = self.try_to("image filled", lambda: self.person.fill(item.id, data(SMALL)))
        item.state = "there" if filled else "deleting"

    def make_upload(self) -> None:
        """A volume that is to become an image."""
        if len(self.of("upload", "there")) >= MOST["upload"]:
            return
        made: list[str] = []
        self.try_to(
            "upload",
            lambda: made.append(
                self.person.queued(f"{NAME}-upload", image_volume_source=self.source)
            ),
        )
        self.items += [Item(one, "upload", time.monotonic()) for one in made]

    def make_volume(self) -> None:
        """A bootable volume of an image."""
        images = self.of("image", "there")
        if not images or len(self.of("volume", "creating", "there")) >= MOST["volume"]:
            return
        image, made = self.dice.choice(images), list[str]()
        target = self.dice.choice(TARGETS)
        self.try_to("volume", lambda: made.append(self.person.begin_volume(image.id, target)))
        self.items += [Item(one, "volume", time.monotonic(), image.id, "creating") for one in made]

    def delete_image(self) -> None:
        """Delete an image or an upload that nothing is being made of."""
        busy = {item.image for item in self.of("volume", "creating")}
        if chosen := [item for item in self.alive() if item.id not in busy]:
            self.delete(self.dice.choice(chosen))

    def delete_volume(self) -> None:
        """Delete a volume."""
        if chosen := self.of("volume", "there"):
            self.delete(self.dice.choice(chosen))

    def replace(self) -> None:
        """Delete an image and make another one of the same name."""
        self.delete_image()
        self.make_image()

    def deactivate(self) -> None:
        """Deactivate an image for a while that nothing is being made of."""
        busy = {item.image for item in self.of("volume", "creating")}
        if not (chosen := [item for item in self.of("image", "there") if item.id not in busy]):
            return
        item = self.dice.choice(chosen)
        item.state, item.since = "inactive", time.monotonic()
        self.try_to(
            "image deactivated", lambda: self.person.activated(item.id, False), may_fail=True
        )

    def delete(self, item: Item) -> None:
        """Have an item deleted; asked for again by `tidy` until it is gone."""
        if item.state != "deleting":
            item.state, item.since = "deleting", time.monotonic()
        folder, service = ("volumes", self.person.connection.block_storage)
        if item.kind != "volume":
            folder, service = ("images", self.person.connection.image)

        def ask() -> None:
            answer = service.delete(f"/{folder}/{item.id}")
            # Cinder answers before it is gone
            if answer.status_code == 404 or (answer.status_code < 300 and folder == "images"):
                item.state = "gone"
            elif answer.status_code >= 300:
                raise RuntimeError(
                    f"deleting {item.kind} {item.id}: {answer.status_code} {answer.text[:150]}"
                )

        # An image that somebody reads can't be deleted, nor a volume that is being made
        self.try_to(f"{item.kind} deleted", ask, may_fail=True)

    def tidy(self) -> None:
        """Activate what has been deactivated for long enough, ask again for deletions, look at
        volumes."""
        for item in self.of("image", "inactive"):
            if time.monotonic() - item.since > INACTIVE and self.try_to(
                "image activated",
                lambda one=item: self.person.activated(one.id, True),
                may_fail=True,
            ):
                item.state = "there"
        for item in self.items:
            if item.state == "deleting":
                self.delete(item)
        for item in self.of("volume", "creating"):
            self.look(item)

    def look(self, item: Item) -> None:
        """See what has become of a volume."""
        status: list[str] = []

        def ask() -> None:
            answer = self.person.connection.block_storage.get(f"/volumes/{item.id}")
            if answer.status_code == 404:
                raise RuntimeError(f"volume {item.id} is lost")
            if answer.status_code < 300:
                status.append(str(answer.json()["volume"]["status"]))

        self.try_to("volume looked at", ask)
        late = time.monotonic() - item.born > LOST
        if status == ["available"]:
            item.state = "there"
        elif status and (status[0].startswith("error") or late):
            self.failed(f"volume {item.id} of image {item.image} is {status[0]}", item.born)
            item.state = "broken"

    def complete(self) -> None:
        """Have at least one image, upload and volume to judge at the end."""
        for kind, make in (
            ("image", self.make_image),
            ("upload", self.make_upload),
            ("volume", self.make_volume),
        ):
            if not self.of(kind, "there", "inactive", "creating"):
                make()

    def settle(self) -> None:
        """Activate all images, so that what is alive now has to be warm."""
        for item in self.of("image", "inactive"):
            item.since = 0.0
        self.tidy()

    def clear(self) -> None:
        """Ask for the deletion of all that is left; may be called again."""
        for item in self.items:
            if item.state != "gone":
                self.delete(item)
