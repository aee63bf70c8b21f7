"""Checks of Glance by its answers. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from worker.core.cloud import Store, Volume
from worker.core.pool import VolumeType
from worker.core.target import Target
from worker.diagnose.check import Check
from worker.diagnose.doctor.facts import Facts, decided
from worker.diagnose.doctor.untold import Untold, untold
from worker.openstack.survey import LOCATION_API, Shown
from worker.settings import Settings

SEE = "see glance"


def checks(facts: Facts, settings: Settings) -> Iterator[Check]:
    """Glance, its stores, and what it lets others see."""
    yield version(facts.image_api)
    yield stores(facts.stores, facts.types)
    targets = [
        one
        for one in (decided(target, facts.stores) for target in settings.targets)
        if isinstance(one, Target)
    ]
    yield copy_image(facts.methods, targets)
    yield locations_shown(
        facts.images, needed=_old_locations(facts, settings, targets), api=facts.image_api
    )
    if isinstance(facts.stores, Untold) or isinstance(facts.image_api, Untold):
        yield Check("uploads", "warn", "can't be told without Glance's answers", SEE)
    else:
        yield uploads(settings, facts.stores, imports=facts.image_api >= LOCATION_API)
    if not isinstance(facts.identity, Untold):
        for store, volumes in facts.kept.items():
            yield store_project(store, volumes, facts.identity.project_id)


def version(answer: tuple[int, ...] | Untold) -> Check:
    """Whether Glance answers, and how new it is."""
    if isinstance(answer, Untold):
        advice = "check the catalog's image endpoint, that glance-api runs, and its log"
        return untold("glance", answer, advice, verdict="fail")
    has = "has" if answer >= LOCATION_API else "has not"
    return Check("glance", "ok", f"API {_dotted(answer)}, {has} the New Location API (2.17)")


def stores(answer: tuple[Store, ...] | Untold, types: tuple[VolumeType, ...] | Untold) -> Check:
    """Glance's stores, and whether the volume types that they name are there."""
    if isinstance(answer, Untold):
        return untold("stores", answer, "see rights in glance" if answer.refused else SEE)
    if not answer:
        return Check(
            "stores",
            "warn",
            "Glance has no multi-store",
            "use strategy cache, or set enabled_backends in Glance",
        )
    told = ", ".join(f"{store.id} ({_described(store)})" for store in answer)
    if not isinstance(types, Untold):
        names = {one.name for one in types}
        lost = [store for store in answer if store.volume_type and store.volume_type not in names]
        if lost:
            which = ", ".join(f"{store.id} wants volume type {store.volume_type}" for store in lost)
            return Check(
                "stores",
                "warn",
                f"{which}, which Cinder has not",
                "correct cinder_volume_type of the store",
            )
    return Check("stores", "ok", told)


def _described(store: Store) -> str:
    return ", ".join(part for part in (store.type or "type unknown", store.volume_type) if part)


def copy_image(answer: frozenset[str] | Untold, targets: list[Target]) -> Check:
    """Whether Glance copies images into stores, where a target rests on that."""
    name = "copy-image"
    if isinstance(answer, Untold):
        return untold(name, answer, SEE)
    offered = f"import methods {', '.join(sorted(answer)) or '(none)'}"
    if "copy-image" in answer:
        return Check(name, "ok", offered)
    need = [target.name for target in targets if target.strategy == "store"]
    if not need:
        return Check(name, "ok", f"{offered}; no target needs it")
    return Check(
        name,
        "fail",
        f"{offered}; {', '.join(need)} can't do without",
        "add copy-image to enabled_import_methods of Glance and restart it",
    )


def _old_locations(facts: Facts, settings: Settings, targets: list[Target]) -> list[str]:
    """Check what needs show_multiple_locations."""
    lacks_new = not isinstance(facts.image_api, Untold) and facts.image_api < LOCATION_API
    # Without the new API neither Cinder nor the worker finds an Image-Volume in a store another way
    kinds = ("location", "store") if lacks_new else ("location",)
    need = [
        f"target {target.name} (strategy {target.strategy})"
        for target in targets
        if target.strategy in kinds
    ]
    old = settings.uploads.location_api == "old" or lacks_new
    # Where there is no cinder store no upload is completed, whatever the API
    some = not isinstance(facts.stores, Untold) and any(
        store.type == "cinder" for store in facts.stores
    )
    if old and some and "upload" not in settings.switched_off:
        need.append("uploads by the old location API")
    return need


def locations_shown(
    answer: tuple[Shown, ...] | Untold, *, needed: list[str], api: tuple[int, ...] | Untold
) -> Check:
    """Whether Glance shows readers of an image where its data lies (OSSN-0065, OSSN-0090)."""
    name = "show_multiple_locations"
    if isinstance(answer, Untold):
        return untold(name, answer, "see rights in glance" if answer.refused else SEE)
    if not answer:
        if needed:
            detail = f"can't be told without an image; {', '.join(needed)} needs it"
            return Check(name, "warn", detail, "make an image and look again")
        return Check(name, "skipped", "can't be told without an image")
    options = {
        "show_multiple_locations": any(image.locations for image in answer),
        "show_image_direct_url": any(image.direct_url for image in answer),
    }
    on = [option for option, shown in options.items() if shown]
    if needed and not options["show_multiple_locations"]:
        return Check(
            name,
            "fail",
            f"off, but {', '.join(needed)} needs it",
            "this Glance has nothing else: switch it on, or use strategy cache and no uploads "
            "(OSSN-0090)"
            if not isinstance(api, Untold) and api < LOCATION_API
            else "use strategy store or cache and [uploads] location_api = auto, rather than "
            "switch it on (OSSN-0090)",
        )
    if not on:
        return Check(
            name,
            "ok",
            "off, and show_image_direct_url too; Cinder before 2025.2 clones nothing of a store "
            "then",
        )
    return Check(
        name,
        "warn",
        f"{' and '.join(on)} on: readers of an image learn where its data lies, some can change "
        f"that (OSSN-0065, "
        "OSSN-0090)",
        f"{', '.join(needed)} needs it: keep set_image_location and delete_image_location of "
        f"Glance's policy to admin; "
        "get_image_location too, but for Cinder before 2025.2, which reads locations in the "
        "user's name"
        if needed
        else "set them to false in glance-api.conf, once Cinder is 2025.2 or newer and has a "
        "[glance] login with the "
        "role service; another one needs them to clone",
    )


def uploads(settings: Settings, stores: tuple[Store, ...], *, imports: bool) -> Check:
    """Whether uploads can be completed, and by which location API."""
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
        return Check(
            "uploads", "fail", "Glance is older than 2.17", "set location_api = auto in [uploads]"
        )
    if api == "old" or not imports:
        return Check(
            "uploads",
            "warn",
            "by the old location API",
            "it needs show_multiple_locations, which shows every reader where data lies "
            "(OSSN-0065, OSSN-0090)",
        )
    return Check("uploads", "ok", "by the New Location API")


def store_project(store: str, volumes: tuple[Volume | Untold, ...], project_id: str) -> Check:
    """Whether a store keeps its images in volumes of the internal project, as only those count as
    Image-Volumes."""
    name = f"store {store}"
    seen = [volume for volume in volumes if isinstance(volume, Volume)]
    foreign = [volume for volume in seen if volume.foreign]
    if foreign:
        whose = ", ".join(sorted({volume.project_id or "another" for volume in foreign}))
        return Check(
            name,
            "fail" if len(foreign) == len(seen) else "warn",
            f"{len(foreign)} of {len(seen)} images lie in volumes of project {whose}, not of "
            f"ours ({project_id})",
            "set cinder_store_project_name, cinder_store_user_name and so on of that store to "
            "our project, or log the "
            "worker in to the project that it uses",
        )
    if seen:
        return Check(name, "ok", f"keeps images in volumes of our project ({len(seen)} looked at)")
    if gone := [volume for volume in volumes if isinstance(volume, Untold)]:
        return untold(
            name,
            gone[0],
            "the image's volume can't be seen: is it gone (explain IMAGE), or does Cinder hide "
            "it from us?"
            if gone[0].missing
            else "see rights to locations, cinder",
        )
    return Check(
        name,
        "ok",
        "none of the newest images lies in it, so whose volumes it makes can't be told yet",
    )


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers)) or "unknown"
