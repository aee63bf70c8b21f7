"""`init`: a first configuration, from what the cloud shows."""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cliff.command import Command

from handlers import image_volume
from handlers.target_store import read_encryption
from worker.broker.inspect import look
from worker.cli import Worker
from worker.cli.assembly import RESERVED
from worker.core.cloud import Store
from worker.core.errors import Blocked, Malformed, Misconfigured, NotFound, Temporary
from worker.diagnose.proposal import Seen, propose
from worker.observe.metrics import Metrics

if TYPE_CHECKING:
    from worker.openstack.cloud import OpenStackCloud

EXCHANGES = ("glance", "openstack", "cinder")
TIMEOUT = 30.0
"""Seconds that a request may take."""
NEWEST = 50
"""Images that are looked at to find out which stores this Cinder has the volumes of."""


class Init(Command):
    """Write a first configuration, with comments, from what the cloud shows.

    It asks Glance, Cinder and the brokers for volume types, pools, stores and exchanges. Each
    public volume type that is not encrypted and leads to pools becomes a target; of types that lead
    to the same pools one. The login is that of --cloud, OS_CLOUD or the OS_* variables. Nothing is
    changed in the cloud; a file that is there is not overwritten.
    """

    app: Worker

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        # fmt: off
        parser.add_argument("--output", metavar="FILE", default="",
                            help="Write this new file, readable by its owner alone, instead of "
                                 "standard output.")
        parser.add_argument("--cloud", metavar="NAME", default="", help="Entry of clouds.yaml.")
        parser.add_argument("--transport-url", metavar="URL", action="append", default=[],
                            help="transport_url of Glance or Cinder; repeat it for each broker. "
                                 "Others see it in the list of processes: "
                                 "OS_NOTIFICATIONS__TRANSPORT_URLS does without, separated by ;.")
        parser.add_argument("--work-url", metavar="URL", default="",
                            help="Broker and vhost for the worker's own queues; else "
                                 "OS_WORK__URL, else in memory.")
        # fmt: on
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Exit status 0 once the configuration is written."""
        if parsed_args.output and os.path.lexists(parsed_args.output):
            raise Misconfigured(f"--output: {parsed_args.output} is there already")
        name = parsed_args.cloud or os.environ.get("OS_CLOUD", "")
        parsed_args.work_url = parsed_args.work_url or os.environ.get("OS_WORK__URL", "")
        if not parsed_args.transport_url:
            told = os.environ.get("OS_NOTIFICATIONS__TRANSPORT_URLS", "")
            parsed_args.transport_url = [url.strip() for url in told.split(";") if url.strip()]
        exchanges = self._exchanges(parsed_args.transport_url)
        seen = asyncio.run(_read(name, parsed_args, exchanges))
        try:
            text = propose(seen)
        except ValueError as error:
            raise Misconfigured(str(error)) from error
        if not parsed_args.output:
            self.app.stdout.write(text)
            return 0
        try:
            _write(Path(parsed_args.output), text)
        except OSError as error:
            raise Misconfigured(
                f"--output: {parsed_args.output}: {error.strerror or error}"
            ) from error
        if not parsed_args.transport_url:
            self.app.LOG.warning("set transport_urls in %s, then run doctor", parsed_args.output)
        return 0

    def _exchanges(self, urls: list[str]) -> list[str]:
        """The usual exchanges that the brokers have; a broker that does not answer is told."""
        found: list[str] = []
        for url in urls:
            seen = look(url, exchanges=EXCHANGES)
            if seen.problem:
                self.app.LOG.warning("the exchanges can't be seen: %s", seen.problem)
            found += [one for one in seen.exchanges if one not in found]
        return found


def _write(path: Path, text: str) -> None:
    """Write a new file that only its owner may read: it may hold passwords."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise


async def _read(name: str, options: argparse.Namespace, exchanges: list[str]) -> Seen:
    # Wrong options are told before openstacksdk is imported
    from worker.openstack.cloud import OpenStackCloud  # noqa: PLC0415
    from worker.openstack.login import connect  # noqa: PLC0415

    metrics = Metrics()
    connection = connect(name=name or None, timeout=TIMEOUT, concurrency=RESERVED)
    cloud = OpenStackCloud(
        connection=connection,
        metrics=metrics,
        concurrency=RESERVED,
        timeout=TIMEOUT,
    )
    try:
        await cloud.identity()
        login = await cloud.login()
        types = [
            one
            for one in await cloud.describe_volume_types()
            if not one.name.startswith(image_volume.PLACING)
        ]
        ids = {one.id: one.name for one in types}
        try:
            pools = await cloud.list_pools()
        except (Blocked, NotFound):
            pools = None
        stores = await cloud.list_stores()
        return Seen(
            login=f"user {login.user}, project {login.project}",
            cloud=name,
            transport_urls=options.transport_url,
            work_url=options.work_url,
            exchanges=exchanges,
            types=types,
            encrypted=await read_encryption(cloud, ids, ids.values()),
            pools=pools,
            stores=stores,
            own=await _own(cloud, stores),
        )
    finally:
        cloud.close()


async def _own(cloud: OpenStackCloud, stores: tuple[Store, ...]) -> frozenset[str]:
    """The stores whose volumes this Cinder has, by the newest images that are in them; asked only
    where a volume type has several."""
    named = [store.volume_type for store in stores if store.type == "cinder" and store.volume_type]
    doubled = {
        store.id for store in stores if store.volume_type and named.count(store.volume_type) > 1
    }
    found: set[str] = set()
    for image in await cloud.newest_images(limit=NEWEST, status="active") if doubled else ():
        if not image.stores & doubled - found:
            continue
        try:
            for location in await cloud.get_locations(image.id) or ():
                if location.store in doubled and location.volume_id:
                    await cloud.get_volume(location.volume_id)
                    found.add(location.store)
        except (NotFound, Blocked, Temporary, Malformed):
            continue
    return frozenset(found)
