"""The contract between the engine and a handler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, TypeVar, cast, runtime_checkable

from worker.core.cloud import Cloud, Image, Volume
from worker.core.creation import Creation, Made
from worker.core.deletions import Deletions
from worker.core.job import Key
from worker.core.learned import Learned
from worker.core.locks import Locks
from worker.core.notification import Notification
from worker.core.outcome import Outcome
from worker.core.state import State
from worker.core.target import Policy, Reclaiming, Target, Uploads
from worker.core.undone import Undone
from worker.core.uses import Uses
from worker.core.wishes import Wishes

T = TypeVar("T")


class Watch(Protocol):
    """How a handler waits without a thread."""

    async def changed(self) -> None:
        """Return when something about this key may have changed: a notification came, or it is time
        to poll."""

    @property
    def by_operator(self) -> bool:
        """Whether an operator has asked for this now, which is done in spite of waits that spare
        the cloud."""

    @property
    def wish(self) -> str:
        """The wish of an operator that led to this try, as `worker.core.wishes` names it; else
        ""."""

    def tell(self, step: str) -> None:
        """Let people know what is done next, in one line; ends the try if the key may be another
        worker's by now."""


class Kind(Enum):
    """The kind of thing that a listing shows to be missing."""

    WORK = "work"
    """There is something to do."""
    REFUSED = "refused"
    """Its owner has to change something first; it is looked at again."""
    LOOK = "look"
    """Only a look at the image itself tells whether anything is missing."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A key that looks incomplete, and why; who compares fills in whose image it is about, and the
    image's name."""

    key: Key
    why: str
    project: str = ""
    name: str = ""
    kind: Kind = Kind.WORK


class Handler(Protocol):
    """A reconciler of one kind of key."""

    @property
    def name(self) -> str:
        """The first part of its keys."""

    @property
    def event_types(self) -> frozenset[str]:
        """The event types it wants to hear of."""

    def keys(self, notification: Notification) -> Iterable[Key]:
        """Return the keys to look at again because of a notification. Pure, called on the intake's
        thread."""

    def lanes(self) -> Mapping[str, int]:
        """Its lanes, each with the number of keys to work on at once."""

    async def reconcile(self, key: Key, watch: Watch) -> Outcome:
        """Read the world, do what is missing, say what came of it. Errors of `worker.core.errors`
        are outcomes too."""

    async def prepare(self, volumes: Mapping[str, tuple[Volume, ...]]) -> None:
        """Read what `incomplete` needs besides its arguments; `volumes` are all there are, by
        image."""

    def incomplete(
        self, image_id: str, image: Image | None, volumes: tuple[Volume, ...]
    ) -> Iterable[Missing]:
        """Keys of an image that look incomplete in a bulk listing. Pure. `image` is None if no
        active one is listed."""


@runtime_checkable
class Targeted(Protocol):
    """A handler that works on targets, and tells how they are for people who look."""

    @property
    def resolved(self) -> tuple[Target, ...]:
        """The targets that can be used, with their strategy decided."""

    @property
    def unusable(self) -> Mapping[str, str]:
        """Reasons why targets can't be used, by name."""

    def held_back(self) -> Iterable[tuple[str, str, str]]:
        """The images that are not made warm again on a target for now: image id, target, reason."""

    def full(self) -> Mapping[str, str]:
        """Reasons why nothing more fits on a target, by name."""

    def learned(self) -> Mapping[str, Iterable[Iterable[str]]]:
        """The sets of Glance's stores from which Cinder's driver was seen to clone by itself, by
        target."""

    async def how_made(self, creation: Creation) -> Made | None:
        """How Cinder made a volume that a user had made of an image; None if it was made of
        another volume."""


class Report(Protocol):
    """Who is told of what an operator wants to see counted."""

    def upload_completed(self, path: str) -> None:
        """An upload has become an active image, by this path."""

    def rewarm_began(self, target: str, reason: str) -> None:
        """An Image-Volume is made anew, because it was `changed` or `broken`."""

    def rewarm_held_back(self, target: str) -> None:
        """An image has changed again so soon that it is not made warm anew yet."""

    def repair(self, image_id: str, target: str = "", *, possible: bool) -> None:
        """Whether an image's data can be had somewhere, as a target sees it; "" for all targets."""

    def seen(self, image: Image, states: Mapping[str, tuple[State, str]]) -> None:
        """How an image was found: a state and why, by those targets of which that is known."""

    def held_back(self, volumes: int, *, brake: bool) -> None:
        """So many volumes of images that are not found are kept; `brake` if their number alone
        keeps them."""

    def targets(self, targets: Iterable[Target]) -> None:
        """The targets as they were found, with their pools."""

    def missing(self, volumes: int, *, brake: bool) -> None:
        """So many volumes of locations are not found; `brake` if their number alone keeps the
        locations."""

    def reclaimed(self, reason: str) -> None:
        """A volume was deleted because nobody needs it: image `gone`, `unwanted`, `budget`,
        `left-over`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts that a handler is built from. `now` is the clock, in epoch seconds.

    `wishes` are what an operator has asked for. `urgent` is the same cloud by requests that wait
    behind nobody else's, for what a user sits and waits for. `locks` are those of images, `undone`
    is what we made and others took away, `learned` what trying has shown. `keeps_order` is True in
    the daemon alone: a command that only looks must not clear up.
    """

    cloud: Cloud
    urgent: Cloud
    targets: tuple[Target, ...]
    policy: Policy
    uploads: Uploads
    reclaiming: Reclaiming
    uses: Uses
    deletions: Deletions
    now: Callable[[], float]
    report: Report
    locks: Locks = field(default_factory=Locks)
    undone: Undone = field(default_factory=Undone)
    learned: Learned = field(default_factory=Learned)
    wishes: Wishes = field(default_factory=Wishes)
    keeps_order: bool = False
    _shared: dict[object, object] = field(
        init=False, default_factory=dict, repr=False, compare=False
    )

    def shared(self, make: Callable[[Parts], T]) -> T:
        """Return what `make` builds from these parts. It is built once, for all handlers.

        Parts with another cloud (`dataclasses.replace`) share nothing with these.
        """
        if make not in self._shared:
            self._shared[make] = make(self)
        return cast("T", self._shared[make])


HandlerFactory = Callable[[Parts], Handler]
