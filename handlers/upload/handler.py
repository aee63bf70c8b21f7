"""Upload as a handler: its keys, its reconciler, and its answer to resync."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import structlog

from handlers import ROUTES, actions
from handlers.deletion import Deletion, Gone
from handlers.target_store import TargetStores
from handlers.upload import listed
from handlers.upload.act import Actor
from handlers.upload.actions import Finish, Observation
from handlers.upload.clones import clones_of, is_ours
from handlers.upload.observe import Observer
from handlers.upload.owner import Owner
from handlers.upload.plan import plan
from handlers.upload.seen import Seen
from handlers.upload.sources import source_named
from worker.core.cloud import Image, Store, Volume
from worker.core.errors import Blocked, NotFound
from worker.core.handler import Missing, Parts, Watch
from worker.core.job import Key
from worker.core.notification import Notification
from worker.core.outcome import Again, Done, Outcome
from worker.core.target import UPLOAD

log = structlog.get_logger(__name__)

# Uploads worked on at once; each is a few requests and a clone
WIDTH = 8


class Upload:
    """Reconciles an image."""

    name = "upload"
    event_types = ROUTES["upload"]

    def __init__(self, parts: Parts) -> None:
        parts = replace(parts, cloud=parts.urgent)
        # A wish about the earlier image is not a wish about this one
        reserved = (*parts.uploads.reserved_image_namespaces, parts.policy.property)
        self._rules = rules = replace(parts.uploads, reserved_image_namespaces=reserved)
        self._cloud = parts.cloud
        self._targets = parts.targets
        self._now = parts.now
        self._report = parts.report
        self._gone = parts.shared(Gone)
        self._stores = parts.shared(TargetStores)
        self._known: tuple[Store, ...] = ()
        self._observer = Observer(
            cloud=parts.cloud, stores=self._stores, rules=rules, now=parts.now
        )
        self._actor = Actor(
            cloud=parts.cloud, rules=rules, deletion=parts.shared(Deletion), now=parts.now
        )
        self._owner = Owner(cloud=parts.cloud, rules=rules, now=parts.now)

    def keys(self, notification: Notification) -> Iterable[Key]:
        """The image, if it is queued or asks for a volume's data, or if a clone was made for it."""
        if notification.event_type.startswith("image."):
            concerned = (
                notification.status == "queued"
                or self._rules.source_property in notification.properties
            )
        else:
            # Of the volumes that claim their image from the start, only our clones are for uploads
            concerned = notification.target == UPLOAD or not (
                notification.claimed or notification.target
            )
        return (
            (Key(self.name, notification.image_id),) if notification.image_id and concerned else ()
        )

    def lanes(self) -> Mapping[str, int]:
        """One lane, which nothing else shares."""
        return {self.name: WIDTH}

    async def reconcile(self, key: Key, watch: Watch) -> Outcome:
        """Observe, plan and act until the image is active, or the plan says why not."""
        seen: Seen | None = None
        told = False
        try:
            seen = await self._observer.begin(key.image_id)
            try:
                while not isinstance(action := plan(seen, self._rules, self._targets), Finish):
                    watch.tell(actions.words(action))
                    if isinstance(action, Observation):
                        seen = await self._observer.observe(action, seen, watch)
                    else:
                        # Of what Glance was told we know nothing if its answer is lost
                        told = told or isinstance(action, actions.AddLocation)
                        seen = await self._actor.act(action, seen)
            except Blocked as error:
                if seen.image.status != "queued":
                    # It has its data, so there is nothing that its owner waits for
                    raise
                # Its property may have been bound at the same time
                image = await self._cloud.get_image(key.image_id)
                after = await self._owner.tell(
                    "waiting: the cloud's operator has to act", image, watch
                )
                if after > 0:
                    return Again(str(error), after=after, counted=False, wake_on_notification=True)
                raise
        except NotFound:
            mine = set() if told or seen is None else await self._observer.copies(seen)
            return await self._gone.find_out(key.image_id, watch, mine)
        return await self._settle(action, seen, watch)

    async def _settle(self, finish: Finish, seen: Seen, watch: Watch) -> Outcome:
        """Count an upload that is complete, and tell the owner what came of a try."""
        outcome = finish.outcome
        if seen.asked and isinstance(outcome, Done):
            self._count(seen)
            outcome = replace(outcome, changed=True)
        if finish.tell or not isinstance(outcome, Again):
            after = await self._owner.tell(finish.tell, seen.image, watch)
            if after > 0:
                reason = getattr(outcome, "reason", finish.tell or "the upload is complete")
                return Again(
                    f"{reason}; its owner is told in a moment",
                    after=after,
                    counted=False,
                    wake_on_notification=True,
                )
        return outcome

    def _count(self, seen: Seen) -> None:
        path = self._path(seen)
        self._report.upload_completed(path)
        if path == "stranded" and seen.source:
            # Cinder made it in the owner's project, so it belongs to the owner
            log.info(
                "volume_left_to_owner",
                volume_id=seen.source.id,
                project_id=seen.source.project_id,
            )

    def _path(self, seen: Seen) -> str:
        """Return how the image came by its data: asked for by property, Cinder's upload finished,
        or begun again."""
        if source_named(seen.image, self._rules):
            return "property"
        return "stranded" if all(is_ours(clone) for clone in seen.clones or ()) else "cinder"

    async def prepare(self, volumes: Mapping[str, tuple[Volume, ...]]) -> None:  # noqa: ARG002  not its concern
        """Read Glance's stores."""
        self._known = await self._stores.stores()

    def incomplete(
        self, image_id: str, image: Image | None, volumes: tuple[Volume, ...]
    ) -> Iterable[Missing]:
        """An image that waits for a volume's data, or has clones that need not be its data. Pure
        but for the clock."""
        if image is None:
            return
        why, kind = listed.lack(
            image,
            clones_of(image, volumes, self._rules),
            self._rules,
            stores=self._known,
            targets=self._targets,
            now=self._now(),
        )
        if why:
            yield Missing(Key(self.name, image_id), why, kind=kind)
