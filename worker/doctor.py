"""Doctor: does everything that a worker needs work? Each check reads, or declares nothing that is not ours."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from handlers import target_store
from worker.broker import look
from worker.check import Check
from worker.cloud import Store
from worker.errors import Blocked, Malformed, NotFound, Temporary
from worker.sdk import OpenStackCloud
from worker.settings import Settings
from worker.target import Target

SERVICE = "service"


def brokers(settings: Settings) -> Iterator[Check]:
    """Each broker: does it answer, are the services' exchanges there? Blocks."""
    for number, url in enumerate(settings.transport_urls):
        name = f"notifications {number}"
        if settings.driver != "rabbit":
            yield Check(name, "warn", f"driver {settings.driver}", "only RabbitMQ can be looked at; see /readyz")
            continue
        seen = look(url, exchanges=settings.exchanges)
        if seen.problem:
            yield Check(name, "fail", f"{seen.broker}: {seen.problem}", "check the URL, the user's rights, the network")
        elif not seen.exchanges:
            yield Check(
                name,
                "warn",
                f"{seen.broker}: none of the exchanges {', '.join(settings.exchanges)} is there yet",
                "set driver = messagingv2 in [oslo_messaging_notifications] of Glance and Cinder; the exchange appears "
                "with the first notification",
            )
        else:
            yield Check(name, "ok", f"{seen.broker}: exchanges {', '.join(seen.exchanges)}")
    if settings.work_url == "memory://":
        yield Check(
            "lanes",
            "warn",
            "in memory",
            "fine for one process; set [work] url to share the work and to survive restarts",
        )
        return
    seen = look(settings.work_url, exchanges=())
    if seen.problem:
        yield Check("lanes", "fail", f"{seen.broker}: {seen.problem}", "the user needs configure, write and read there")
    else:
        yield Check("lanes", "ok", str(seen.broker))


async def services(cloud: OpenStackCloud, settings: Settings) -> AsyncIterator[Check]:
    """Login, roles, Glance, Cinder, and each target."""
    try:
        identity = await cloud.identity()
    except (Temporary, Blocked) as error:
        yield Check("login", "fail", str(error), "check [cloud] name, clouds.yaml and that Keystone answers")
        return
    yield Check("login", "ok", f"project {identity.project_id} owns the Image-Volumes")
    roles = (settings.admin_role, SERVICE)
    if lacking := [role for role in roles if role not in identity.roles]:
        yield Check("roles", "fail", f"lacks {', '.join(lacking)}", "grant them to the user in the internal project")
    else:
        yield Check("roles", "ok", ", ".join(roles))
    stores: tuple[Store, ...] = ()
    try:
        stores = await cloud.list_stores()
        yield Check("glance", "ok", f"stores {', '.join(store.id for store in stores) or '(no multi-store)'}")
        methods = await cloud.import_methods()
        if "copy-image" in methods:
            yield Check("copy-image", "ok", f"import methods {', '.join(sorted(methods))}")
        else:
            yield Check(
                "copy-image",
                "warn",
                f"import methods {', '.join(sorted(methods)) or '(none)'}",
                "strategy store needs it: add copy-image to enabled_import_methods of Glance",
            )
        yield uploads_check(settings, stores, imports=await cloud.imports_locations())
    except (Temporary, Blocked, NotFound, Malformed) as error:
        yield Check("glance", "fail", str(error), "check the catalog's image endpoint and Glance's log")
    try:
        types = set((await cloud.list_volume_types()).values())
        yield Check("cinder", "ok", f"{len(types)} volume types")
    except (Temporary, Blocked, NotFound, Malformed) as error:
        yield Check("cinder", "fail", str(error), "check the catalog's block-storage endpoint and Cinder's log")
        return
    for target in settings.targets:
        yield target_check(target, types, stores)


def uploads_check(settings: Settings, stores: tuple[Store, ...], *, imports: bool) -> Check:
    """Whether uploads can be completed, and by which location API. Pure."""
    if "upload" in settings.switched_off:
        return Check("uploads", "ok", "switched off")
    named = any(target.glance_store for target in settings.targets)
    if not named and not any(store.type == "cinder" for store in stores):
        return Check(
            "uploads",
            "warn",
            "Glance has no cinder store",
            "uploads end in one: add a store to Glance, or set enabled = false in [uploads]",
        )
    api = settings.uploads.location_api
    if api == "new" and not imports:
        return Check("uploads", "fail", "Glance is older than 2.17", "set location_api = auto in [uploads]")
    if api == "old" or not imports:
        return Check(
            "uploads",
            "warn",
            "by the old location API",
            "it needs show_multiple_locations, which shows every reader where data lies (OSSN-0065, OSSN-0090)",
        )
    return Check("uploads", "ok", "by the New Location API")


def target_check(target: Target, types: set[str], stores: tuple[Store, ...]) -> Check:
    """Whether the target can be reached the way it is configured. Pure."""
    name = f"target {target.name}"
    if target.volume_type not in types:
        return Check(
            name, "fail", f"no volume type {target.volume_type}", "openstack volume type list shows what there is"
        )
    try:
        decided = target_store.resolve(target, stores)
    except Blocked as error:
        names = ", ".join(sorted(store.id for store in stores)) or "(none)"
        return Check(name, "fail", str(error), f"Glance has {names}; name one in glance_store, or use strategy cache")
    if decided.strategy == "location":
        return Check(
            name,
            "warn",
            f"location in store {decided.glance_store}",
            "needs show_multiple_locations, which shows every reader where data lies (OSSN-0090)",
        )
    if decided.strategy == "cache":
        return Check(
            name,
            "warn" if target.strategy == "auto" else "ok",
            "cache",
            "no API tells whether image_volume_cache_enabled is set on this backend; the first image will"
            if target.strategy == "auto"
            else "",
        )
    return Check(name, "ok", f"store {decided.glance_store}")
