"""Checks of Cinder: the API, and for each target its type, quota and cache. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from handlers import image_volume
from handlers.prewarm.strategies import cache
from worker.core.cloud import Store, Volume
from worker.core.pool import VolumeType
from worker.core.target import Target
from worker.diagnose.check import Check
from worker.diagnose.doctor.facts import Facts, decided
from worker.diagnose.doctor.pools import LITTLE, arrays, pools
from worker.diagnose.doctor.untold import ADMINS, SEE, Untold, untold
from worker.openstack.survey import Identity, Limit, Service
from worker.settings import Settings

FEW_VOLUMES = 10


def checks(facts: Facts, settings: Settings, events: Mapping[str, float] | None) -> Iterator[Check]:
    """Cinder, and each target; `events` are those of the image-volume cache that a running worker
    has counted."""
    yield api(facts.volume_api, facts.types)
    yield services(facts.services)
    yield cloning()
    yield quota("quota", facts.limits, "", facts.identity)
    yield from arrays(settings.targets, facts)
    for target in settings.targets:
        yield from of_target(target, facts, events)


def api(version: tuple[int, ...] | Untold, types: tuple[VolumeType, ...] | Untold) -> Check:
    """Whether Cinder answers."""
    advice = "check the catalog's block-storage endpoint, that cinder-api runs, and its log"
    if isinstance(types, Untold):
        return untold("cinder", types, advice, verdict="fail")
    told = (
        "" if isinstance(version, Untold) or not version else f"API {'.'.join(map(str, version))}, "
    )
    return Check("cinder", "ok", f"{told}{len(types)} volume types")


def services(answer: tuple[Service, ...] | Untold) -> Check:
    """Whether the services that make volumes run."""
    name = "cinder services"
    if isinstance(answer, Untold):
        # A login with few rights needs no more
        return (
            Check(name, "skipped", f"not told: {ADMINS}")
            if answer.refused
            else untold(name, answer, SEE)
        )
    ours = [one for one in answer if one.binary in ("cinder-volume", "cinder-scheduler")]
    down = [f"{one.binary} on {one.host}" for one in ours if not one.up]
    disabled = [f"{one.binary} on {one.host}" for one in ours if one.up and not one.enabled]
    if down:
        return Check(
            name,
            "warn",
            f"down: {', '.join(down)}",
            "start them, or see their logs: nothing is made there",
        )
    if disabled:
        advice = (
            "openstack volume service set --enable HOST cinder-volume, once what it was "
            "disabled for is over"
        )
        return Check(name, "warn", f"disabled: {', '.join(disabled)}", advice)
    return Check(name, "ok", f"{len(ours)} up")


def cloning() -> Check:
    """Name the conditions that no API shows, and how to find out."""
    return Check(
        "cloning",
        "skipped",
        "no API tells whether cinder.conf has allowed_direct_url_schemes = cinder, without which "
        "nothing is cloned",
        "image-volume-worker explain --probe IMAGE tries it; the metric volume_create_seconds "
        "shows it",
    )


def quota(
    name: str,
    answer: Mapping[str, Limit] | Untold,
    volume_type: str,
    identity: Identity | Untold,
) -> Check:
    """Check the internal project's quota: of a volume type, or of all with ""."""
    if isinstance(answer, Untold):
        # The worker goes by it only where a target has a budget
        if answer.refused:
            return untold(
                name, answer, "allow limits of quotas to the role: volume_extension:quotas:show"
            )
        return untold(name, answer, SEE)
    kinds = [f"{kind}_{volume_type}" if volume_type else kind for kind in ("volumes", "gigabytes")]
    limited = {kind: answer[kind] for kind in kinds if kind in answer and answer[kind].limit >= 0}
    if not limited:
        return Check(name, "ok", "no limit")
    told = ", ".join(f"{kind} {limit.used} of {limit.limit}" for kind, limit in limited.items())
    project = "PROJECT" if isinstance(identity, Untold) else identity.project_id
    of_type = f"--volume-type {volume_type} " if volume_type else ""
    advice = (
        f"openstack quota set --volumes N --gigabytes N {of_type}{project}, or bound the targets "
        f"by max_gigabytes, max_count"
    )
    if any(limit.left <= 0 for limit in limited.values()):
        return Check(name, "fail", f"used up: {told}", advice)
    scarce = [
        kind
        for kind, limit in limited.items()
        if limit.left < limit.limit * LITTLE
        or (kind.startswith("volumes") and limit.left < FEW_VOLUMES)
    ]
    if scarce:
        return Check(name, "warn", f"nearly used up: {told}", advice)
    return Check(name, "ok", told)


def of_target(target: Target, facts: Facts, events: Mapping[str, float] | None) -> Iterator[Check]:
    """Everything about one target."""
    name = f"target {target.name}"
    if isinstance(facts.types, Untold):
        yield Check(name, "warn", "can't be told while Cinder does not answer", SEE)
        return
    found = next((one for one in facts.types if one.name == target.volume_type), None)
    if isinstance(facts.stores, Untold):
        yield Check(name, "warn", "can't be told while Glance does not answer", "see stores")
    else:
        yield place(target, {one.name for one in facts.types}, facts.stores)
    if found is None:
        return
    if facts.encrypted.get(found.name) is True:
        yield Check(
            f"{name} encryption",
            "fail",
            f"volumes of type {found.name} are encrypted, and Cinder clones no image into such a "
            f"volume",
            "name a volume type without encryption, or leave this target out",
        )
    if target.availability_zone:
        yield zone(target, facts.zones)
    yield from pools(target, found, facts.pools, facts.volumes)
    yield quota(f"{name} quota", facts.limits, target.volume_type, facts.identity)
    answer = decided(target, facts.stores)
    if isinstance(answer, Target) and answer.strategy == "cache":
        yield cached(answer, facts.volumes, events)


def place(target: Target, types: set[str], stores: tuple[Store, ...]) -> Check:
    """Whether the target can be reached the way it is configured."""
    name = f"target {target.name}"
    if target.volume_type not in types:
        return Check(
            name,
            "fail",
            f"no volume type {target.volume_type}",
            "openstack volume type list shows what there is",
        )
    answer = decided(target, stores)
    if isinstance(answer, str):
        names = ", ".join(sorted(store.id for store in stores)) or "(none)"
        return Check(
            name,
            "fail",
            answer,
            f"Glance has {names}; name one in glance_store, or use strategy cache",
        )
    if answer.strategy == "location":
        return Check(
            name,
            "warn",
            f"type {target.volume_type}, strategy location in store {answer.glance_store}",
            "needs show_multiple_locations, which shows every reader where data lies (OSSN-0090)",
        )
    how = f"type {target.volume_type}, strategy {answer.strategy}"
    if answer.strategy == "native":
        how += f" of {', '.join(answer.native_stores)}"
    elif answer.glance_store:
        how += f" in store {answer.glance_store}"
    return Check(name, "ok", how)


def zone(target: Target, answer: frozenset[str] | Untold) -> Check:
    """Whether the availability zone is there."""
    name = f"target {target.name} zone"
    if isinstance(answer, Untold):
        return untold(name, answer, SEE)
    if target.availability_zone not in answer:
        there = ", ".join(sorted(answer)) or "none"
        detail = f"no zone {target.availability_zone} is available, only {there}"
        return Check(name, "fail", detail, f"correct availability_zone in [target:{target.name}]")
    return Check(name, "ok", target.availability_zone)


def cached(
    target: Target, volumes: tuple[Volume, ...] | Untold, events: Mapping[str, float] | None
) -> Check:
    """Whether Cinder's image-volume cache is on, by what it leaves behind: entries, and events that
    a worker heard."""
    name = f"target {target.name} cache"
    if isinstance(volumes, Untold):
        return untold(name, volumes, SEE)
    entries = sum(
        cache.entry_of((volume,), target) is not None
        for volume in volumes
        if image_volume.image_of(volume) and image_volume.is_entry(volume)
    )
    heard = {event.rpartition(".")[2]: count for event, count in (events or {}).items() if count}
    told = f"{entries} entries seen"
    if heard:
        told += (
            f"; a worker heard "
            f"{', '.join(f'{count:.0f} {word}' for word, count in heard.items())} (of all backends)"
        )
    if entries:
        return Check(name, "ok", told)
    return Check(
        name,
        "warn",
        f"{told}; no API tells whether image_volume_cache_enabled is set on this backend",
        "set image_volume_cache_enabled = true in its section of cinder.conf, and in [DEFAULT] "
        "the two options "
        "cinder_internal_tenant_project_id and _user_id; the first image made warm leaves an entry",
    )
