"""`explain volume`: how Cinder made a volume, and why it was slow."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import dataclass
from typing import Any

from cliff.show import ShowOne

from handlers.prewarm import Prewarm
from handlers.reasons import WORDS, Reason
from handlers.target_store import TargetStores
from worker.cli import Worker, names
from worker.cli.assembly import opened
from worker.cli.values import Moment
from worker.core.cloud import Volume
from worker.core.creation import Creation, Made, Way
from worker.core.handler import Parts
from worker.core.plain import plain
from worker.observe import live
from worker.settings import Settings

WAYS = {
    Way.NATIVE: "cloned by Cinder's driver, from where Glance keeps the image",
    Way.IMAGE_VOLUME: "cloned from the Image-Volume",
    Way.CACHE: "cloned from the entry of Cinder's image-volume cache",
    Way.DOWNLOAD: "downloaded from Glance",
    Way.UNKNOWN: "unknown",
}
SEEN = "by the worker, when the volume was made"
NOW = "by Glance and Cinder as they are now: the worker on this host does not remember the volume"


@dataclass(frozen=True, slots=True)
class _Found:
    volume: Volume
    made: Made
    image_id: str
    target: str
    seconds: float | None
    source: str


class ExplainVolume(ShowOne):
    """Show how Cinder made a volume: as a clone, of what, or by a download, and why.

    A worker that serves [probes] bind on this host remembers the last 10,000 volumes that users had
    made of an image, with the reasons at that time. Of any other volume Cinder still tells whether
    it was downloaded; the reasons are those that hold now. What nobody can tell is unknown. Nothing
    is changed.
    """

    app: Worker

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument("volume", metavar="VOLUME", help="Id or name of the volume.")
        return parser

    def take_action(
        self, parsed_args: argparse.Namespace
    ) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        """How the volume was made, as a column each."""
        settings = self.app.read_settings()
        found = asyncio.run(_find(settings, parsed_args.volume))
        volume, made = found.volume, found.made
        reasons = [reason for reason in made.reasons if reason in set(Reason)]
        shown = {
            "Volume": volume.id,
            "Name": plain(volume.name),
            "Project": volume.project_id,
            "Image": found.image_id,
            "Target": found.target,
            "Type": plain(volume.volume_type),
            "Pool": plain(volume.host),
            "Created": Moment(volume.created_epoch),
            "Made": WAYS[made.way],
            "Path": made.way.value,
            "Seconds": "" if found.seconds is None else round(found.seconds, 1),
            "Reasons": ", ".join(made.reasons) or made.reason,
            "Why": plain(made.why),
            "What to do": "; ".join(
                dict.fromkeys(WORDS[Reason(reason)].advice for reason in reasons)
            ),
            "Known": found.source,
        }
        return tuple(shown), tuple(shown.values())


async def _find(settings: Settings, text: str) -> _Found:
    with opened(settings) as (cloud, parts, _):
        volume = await names.volume(cloud, text)
        told = live.volume(settings.bind, volume.id) if settings.bind else {}
        if told:
            return _Found(
                volume,
                Made(Way(told["way"]), tuple(told["reasons"]), str(told["why"])),
                str(told["image_id"]),
                str(told["target"]),
                told["seconds"],
                SEEN,
            )
        image_id = volume.image_properties.get("image_id", "")
        why = name = ""
        if not image_id and volume.status.startswith("error"):
            why = (
                f"it is {volume.status}, and has nothing of an image: if it was to be made of one, "
                f"that has failed, and the log of cinder-volume says why"
            )
        elif not image_id:
            why = "it was not made of an image"
        elif volume.source_volid or volume.snapshot_id:
            why = "it was made of another volume or of a snapshot"
        elif not (name := await _target_of(volume, parts)):
            why = f"no target serves its type {volume.volume_type} in its pool"
        if why:
            noted = volume.downloaded and not (volume.source_volid or volume.snapshot_id)
            way = Way.DOWNLOAD if noted else Way.UNKNOWN
            return _Found(volume, Made(way, why=why), image_id, name, None, NOW)
        creation = Creation(
            volume_id=volume.id,
            image_id=image_id,
            target=name,
            project=volume.project_id,
            host=volume.host,
            began=volume.created_epoch,
            ended=volume.created_epoch,
            downloaded=volume.downloaded,
        )
        made = await Prewarm(parts).how_made(creation)
        assert made is not None, "it is made of an image"
        return _Found(volume, made, image_id, name, None, NOW)


async def _target_of(volume: Volume, parts: Parts) -> str:
    """The target that serves the volume; "" if none does."""
    for target in parts.targets:
        if target.volume_type == volume.volume_type:
            return target.name
    stores = parts.shared(TargetStores)
    await stores.all()
    ids = {name: type_id for type_id, name in stores.types.items()}
    return stores.sharing.target_of(ids.get(volume.volume_type, ""), volume.host)
