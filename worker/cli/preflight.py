"""The preflight: whether the configuration can work, as the cloud and this machine say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from handlers import policy
from handlers.resolve import missing_type, resolve
from handlers.target_store import read_encryption
from worker.core.errors import Blocked, Misconfigured
from worker.core.target import Target
from worker.observe.address import listen, shown
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.openstack.cloud import OpenStackCloud


@dataclass(frozen=True, slots=True)
class Found:
    """Targets as the cloud has them: their names by volume type id, reasons why some can't be
    used, by name, and whether any keeps Image-Volumes that are locations."""

    targets: Mapping[str, str]
    unusable: Mapping[str, str]
    needs_locations: bool

    @property
    def warnings(self) -> list[str]:
        """The same reasons, as lines for a person."""
        return [f"target {name} can't be used: {why}" for name, why in self.unusable.items()]


async def check_cloud(cloud: OpenStackCloud, settings: Settings) -> Found:
    """Compare the configuration with the cloud; Misconfigured when nothing can be done with it.

    A target whose volume type is gone, or encrypted, leaves the others and uploads alone. It is a
    fault of the configuration only if no target can be used, as with a mistyped name in the only
    one.
    """
    identity = await cloud.identity()
    faults = []
    # No proof that we see what belongs to others: Glance's policy decides that, see `find_witness`
    if settings.admin_role not in identity.roles:
        faults.append(
            f"[cloud] the login has no role {settings.admin_role} in project {identity.project_id}"
        )
    types = {one.id: one.name for one in await cloud.describe_volume_types()}
    wanted = [target.volume_type for target in settings.targets]
    encryption = await read_encryption(cloud, types, wanted)
    unusable = {
        target.name: why
        for target in settings.targets
        if (why := _unusable(target, types, encryption))
    }
    if len(unusable) == len(settings.targets):
        faults += unusable.values()
    if faults:
        raise Misconfigured(*faults)
    # A store that Glance lacks today may be there tomorrow: we name it, and start
    stores = await cloud.list_stores()
    needs_locations = False
    for target in settings.targets:
        try:
            needs_locations |= resolve(target, stores).strategy != "cache"
        except Blocked as error:
            unusable.setdefault(target.name, str(error))
    ids = {name: type_id for type_id, name in types.items()}
    there = (target for target in settings.targets if target.volume_type in ids)
    targets = {ids[target.volume_type]: target.name for target in there}
    return Found(targets, unusable, needs_locations)


def _unusable(
    target: Target, types: Mapping[str, str], encryption: Mapping[str, bool | None]
) -> str:
    """Return the reason why a target can't be used; "" if it can."""
    if why := missing_type(target, types.values()):
        return why
    return policy.encrypted_type(target) if encryption.get(target.volume_type) else ""


async def check_locations(cloud: OpenStackCloud, found: Found) -> str:
    """Return why no Image-Volume that is a location can be kept; "" if Glance shows locations, or no
    target needs them."""
    if not found.needs_locations or await cloud.shows_locations():
        return ""
    return (
        "Glance does not show this login the locations of images: give it the role service, or "
        "before Glance 2.17 set show_multiple_locations"
    )


def check_bind(settings: Settings, *, proven: Settings) -> None:
    """Raise Misconfigured if the address of the HTTP port can't be served. Blocks.

    `proven` has the address that is served now. Whether its port is free on other addresses shows
    only once we let go of it: then the next daemon finds out.
    """
    if settings.bind is None:
        return
    host, port = settings.bind
    same = settings.bind == proven.bind
    try:
        # Our own port is in use, by us; its address may have gone from this machine since
        sockets = listen(host, 0 if same else port)
    except OSError as error:
        if not same and proven.bind is not None and proven.bind[1] == port:
            return
        raise not_bound(settings.bind, error) from error
    for one in sockets:
        one.close()


def not_bound(address: tuple[str, int], error: OSError) -> Misconfigured:
    """Return the fault of a port that cannot be served."""
    return Misconfigured(f"[probes] bind: {shown(address)}: {error.strerror or error}")
