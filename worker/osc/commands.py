"""The commands of the plug-in: `list`, `show`, `explain`, `warm` and `probe` of `openstack image
volume`."""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

from cliff.command import Command
from cliff.lister import Lister
from cliff.show import ShowOne

from handlers import last_use
from handlers.upload import sources
from worker.cli import names, values
from worker.cli.values import Moment
from worker.core.cloud import Image
from worker.core.errors import Misconfigured, Temporary
from worker.core.plain import plain
from worker.core.target import Policy, Target
from worker.diagnose.check import FAILED
from worker.diagnose.explain import probe, signs
from worker.openstack.cloud import OpenStackCloud
from worker.osc import plugin
from worker.osc.explain import TOLD, explained_for, image_and_volumes, types_of

WANTED = Policy().property
NOBODY = "this login may not see it"


class _Asking(Command):
    """A command that asks the cloud of the client's login."""

    app: Any

    @property
    def cloud(self) -> OpenStackCloud:
        """The cloud, with the login of the client."""
        found: OpenStackCloud = getattr(self.app.client_manager, plugin.API_NAME)
        return found


class _Judging(_Asking, Lister):
    """A command whose exit status tells of a download."""

    _failed = False

    def run(self, parsed_args: argparse.Namespace) -> int:
        status: int = super().run(parsed_args)
        return FAILED if self._failed else status


class ListImages(_Asking, Lister):
    """List images with the stores of Glance that hold them, and what the worker says of them.

    Those of the login's own project; an administrator sees those of all projects with
    --all-projects.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument("--all-projects", action="store_true", help="Of all projects.")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], list[Any]]:
        images = asyncio.run(_images(self.cloud, everybodys=parsed_args.all_projects))
        rows = [
            (
                image.id,
                plain(image.name),
                image.status,
                sources.kind_of(image),
                ", ".join(sorted(image.stores or ())),
                plain(image.properties.get(WANTED, "")),
                plain(image.properties.get(TOLD, "")),
            )
            for image in images
        ]
        return ("ID", "Name", "Status", "Format", "Stores", "Prewarm", "Upload"), rows


class ShowImage(_Asking, ShowOne):
    """Show an image with its Image-Volumes, as far as this login may see them."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        return _with_image(super().get_parser(prog_name))

    def take_action(
        self, parsed_args: argparse.Namespace
    ) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        """The image, and a field for each Image-Volume."""
        image, volumes = asyncio.run(image_and_volumes(self.cloud, parsed_args.image))
        locations = asyncio.run(self.cloud.get_locations(image.id))
        shown: dict[str, Any] = {
            "id": image.id,
            "name": plain(image.name),
            "owner": image.owner,
            "status": image.status,
            "format": sources.kind_of(image),
            "size": image.size,
            "stores": ", ".join(sorted(image.stores or ())),
            "prewarm": plain(image.properties.get(WANTED, "")),
            "upload": plain(image.properties.get(TOLD, "")),
            # One without data has none
            "locations": NOBODY
            if locations is None and image.status == "active"
            else "\n".join(plain(location.url) for location in locations or ()),
        }
        for volume in volumes:
            used = last_use.recorded_use(volume, time.time())
            told = [
                volume.status, f"{volume.size} GiB", f"type {plain(volume.volume_type)}",
                f"on {plain(volume.host)}" if volume.host else "",
                f"last used {Moment(used).human_readable()}" if used else "",
            ]  # fmt: skip
            shown[f"volume {volume.id}"] = ", ".join(one for one in told if one)
        return tuple(shown), tuple(shown.values())


class Explain(_Judging):
    """Show how Cinder would make a volume of an image in each pool, and why it would download.

    The volume is one of the login's own project. `unknown` is what this login may not see. Exit
    status 3 if a volume would be a download.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = _with_image(super().get_parser(prog_name))
        parser.add_argument(
            "--type", action="append", default=[], metavar="TYPE", help="Only this volume type."
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], list[Any]]:
        rows = asyncio.run(explained_for(self.cloud, parsed_args.image, parsed_args.type))
        self._failed = any(row[2] == "download" for row in rows)
        return ("Volume type", "Pool", "Volume is a", "Why", "What to do"), rows


class Warm(_Asking):
    """Ask the worker to keep an own image warm, or not to, by the image's property.

    The operator's rules decide which images may be asked for.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = _with_image(super().get_parser(prog_name))
        parser.add_argument("--no", action="store_true", help="Not to keep it warm.")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        image_id = asyncio.run(names.image_id(self.cloud, parsed_args.image))
        # With the image's id it is not meant for the images that inherit it
        value = "no" if parsed_args.no else f"yes/{image_id}"
        asyncio.run(self.cloud.set_properties(image_id, {WANTED: value}))
        self.app.stdout.write(f"{WANTED} = {value}\n")


class Probe(_Judging):
    """Make a volume of an image in the login's project, tell whether it was a clone, and delete
    it."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = _with_image(super().get_parser(prog_name))
        parser.add_argument("--type", required=True, metavar="TYPE", help="Of this volume type.")
        parser.add_argument(
            "--timeout", type=values.age, default=600.0, metavar="AGE", help="How long: 90s, 10m."
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], list[Any]]:
        check = asyncio.run(_probed(self.cloud, parsed_args))
        self._failed = check[1] == "fail"
        return ("Probe", "Result", "Detail", "What to do"), [check]


async def _images(cloud: OpenStackCloud, *, everybodys: bool) -> list[Image]:
    project_id = (await cloud.identity()).project_id
    return [image async for image in cloud.list_images() if everybodys or image.owner == project_id]


async def _probed(cloud: OpenStackCloud, options: argparse.Namespace) -> tuple[str, str, str, str]:
    image, volumes = await image_and_volumes(cloud, options.image)
    if image.status != "active":
        raise Misconfigured(f"the image is {image.status}: no volume can be made of it")
    if not options.timeout:
        raise Misconfigured("--timeout 0 leaves no time for a volume")
    (volume_type,) = await types_of(cloud, [options.type])
    target = Target(name=volume_type.name, volume_type=volume_type.name)
    check = await probe.probe(
        cloud, image, target, take=None, lying=volumes or None, within=options.timeout
    )
    if check.verdict == "fail" and not check.detail.startswith(signs.NO_CLONE):
        raise Temporary(f"{check.detail}: {check.advice}")
    return check.name, check.verdict, check.detail, check.advice


def _with_image(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("image", metavar="IMAGE", help="Id or name of the image.")
    return parser
