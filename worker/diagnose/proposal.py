"""A configuration for a cloud, as the cloud itself shows it. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from handlers.resolve import find_places
from worker.core.cloud import Store
from worker.core.pool import Pool, VolumeType, pools_of
from worker.core.target import Target

NOT_IN_NAMES = str.maketrans(dict.fromkeys(" .:/\\@#,;()[]{}+*?!&%$'\"<>|=~`^", "-"))
WIDTH = 98
EXAMPLE_URL = "rabbit://openstack:PASSWORD@RABBIT:5672/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The cloud, as far as it can be read. `pools` is None where Cinder does not show them;
    `exchanges` are those that the brokers have, of the usual ones."""

    login: str
    cloud: str = ""
    transport_urls: Sequence[str] = ()
    work_url: str = ""
    exchanges: Sequence[str] = ()
    types: Sequence[VolumeType] = ()
    encrypted: Mapping[str, bool | None] = field(default_factory=dict)
    pools: Sequence[Pool] | None = None
    stores: Sequence[Store] = ()
    own: frozenset[str] = frozenset()
    """Stores whose volumes this Cinder has: those of another region it does not find."""


@dataclass(frozen=True, slots=True)
class _Chosen:
    target: Target
    notes: tuple[str, ...]


def propose(seen: Seen) -> str:
    """The text of a configuration file with comments. ValueError if no volume type can be a
    target."""
    chosen, left = _targets(seen)
    if not chosen:
        reasons = "; ".join(left) or "Cinder has none"
        raise ValueError(f"no volume type can be a target: {reasons}")
    lines = [
        *_comment(f"image-volume-worker on the cloud of {seen.login}."),
        *_comment("Check it with: image-volume-worker --config-file THIS_FILE doctor"),
        "",
        "[notifications]",
        *_notifications(seen),
        "",
        "[work]",
        *_comment(
            "A vhost of its own on RabbitMQ lets jobs survive a restart, and several workers share "
            "them: amqp://USER:PASSWORD@RABBIT:5672/image-volume-worker"
        ),
        f"url = {_value(seen.work_url or 'memory://')}",
        "",
        "[cloud]",
        *_comment("The login's project owns the Image-Volumes: it is Cinder's internal tenant."),
        f"name = {_value(seen.cloud)}" if seen.cloud else "# name = (the OS_* variables)",
        "",
        "[prewarm]",
        *(line for note in left for line in _comment(note)),
        f"targets = {', '.join(one.target.name for one in chosen)}",
    ]
    for one in chosen:
        lines += ["", f"[target:{one.target.name}]"]
        lines += [line for note in one.notes for line in _comment(note)]
        lines += [f"volume_type = {_value(one.target.volume_type)}"]
        if one.target.glance_store:
            lines += [f"glance_store = {_value(one.target.glance_store)}"]
    return "\n".join(lines) + "\n"


def _notifications(seen: Seen) -> list[str]:
    if seen.transport_urls:
        lines = [f"transport_urls = {_value(' '.join(seen.transport_urls))}"]
    else:
        lines = [
            *_comment(
                "No API shows where Glance and Cinder publish: take transport_url from "
                "glance-api.conf and cinder.conf, both if they differ."
            ),
            f"transport_urls = {EXAMPLE_URL}",
        ]
    if seen.exchanges:
        # One that is not there yet comes with the first notification
        lines += _comment(
            f"Exchanges that are there now: {', '.join(seen.exchanges)}. The worker looks for glance, "
            f"openstack and cinder."
        )
    return lines


def _targets(seen: Seen) -> tuple[list[_Chosen], list[str]]:
    """The volume types that become targets, and why the others do not."""
    chosen: list[_Chosen] = []
    left: list[str] = []
    served: dict[str, str] = {}
    # A type that Glance has a store of comes first, then those of few pools: the others of these
    # pools share what is there
    with_store = {store.volume_type for store in seen.stores if store.type == "cinder"}
    lead = {one.name: [pool.name for pool in pools_of(one, seen.pools or ())] for one in seen.types}
    for one in sorted(
        seen.types, key=lambda one: (one.name not in with_store, len(lead[one.name]), one.name)
    ):
        pools = lead[one.name]
        if not one.public:
            continue
        if seen.encrypted.get(one.name):
            left.append(f"Volume type {one.name} is encrypted: Cinder makes no clones for it.")
        elif seen.pools is not None and not pools:
            left.append(f"Volume type {one.name} leads to no pool.")
        elif pools and all(pool in served for pool in pools):
            others = ", ".join(dict.fromkeys(served[pool] for pool in pools))
            left.append(
                f"Volume type {one.name} leads to pools of {others}: what is kept warm there "
                f"serves it, too."
            )
        else:
            served |= dict.fromkeys(pools, one.name)
            chosen.append(_chosen(one, seen, {target.target.name for target in chosen}))
    return chosen, left


def _chosen(one: VolumeType, seen: Seen, names: Iterable[str]) -> _Chosen:
    target = Target(name=_name(one.name, frozenset(names)), volume_type=one.name)
    notes: list[str] = []
    if seen.encrypted.get(one.name) is None:
        notes.append("CHECK that it is not encrypted: this login may not see that.")
    places = find_places(target, (one,), tuple(seen.pools or ()))
    if places:
        notes.append(f"Pools: {', '.join(host for place in places for host in place.hosts)}.")
        if missing := [place.name for place in places if len(places) > 1 and not place.specs]:
            notes.append(
                f"The worker cannot choose {', '.join(missing)}: there, images become warm with the "
                f"first volume that a user creates."
            )
    elif seen.pools is None:
        notes.append("This login sees no pools (scheduler_stats): several ones count as one.")
    stores = [
        store.id
        for store in seen.stores
        if store.type == "cinder" and store.volume_type == one.name
    ]
    rbd = [store.id for store in seen.stores if store.type == "rbd"]
    unnamed = [
        store.id for store in seen.stores if store.type == "cinder" and not store.volume_type
    ]
    if len(stores) > 1:
        own = [store for store in stores if store in seen.own]
        target = replace(target, glance_store=(own or stores)[0])
        notes.append(
            f"Glance has several stores of this type ({', '.join(stores)})."
            + (
                " Cinder has volumes of this one."
                if own
                else " CHECK that this one is of this region: no image in them shows it."
            )
        )
    elif stores:
        notes.append(f"Raw images come by Glance's store {stores[0]}, others by Cinder's cache.")
    elif unnamed:
        notes.append(
            f"Glance's store {', '.join(unnamed)} has no cinder_volume_type, so it uses Cinder's "
            f"default type. If that is {one.name}, name the store as glance_store."
        )
    elif rbd:
        notes.append(
            f"Glance has an rbd store ({', '.join(rbd)}): the worker finds out whether Cinder "
            f"clones from it by itself. Otherwise Cinder needs image_volume_cache_enabled."
        )
    else:
        notes.append(
            "Glance has no cinder store of this type: Cinder needs image_volume_cache_enabled in "
            "the backend's section of cinder.conf."
        )
    return _Chosen(target, tuple(notes))


def _name(volume_type: str, names: frozenset[str]) -> str:
    """A name for a target of this type that no other target has."""
    ascii_only = volume_type.encode("ascii", "replace").decode().translate(NOT_IN_NAMES)
    base = ascii_only.strip("-_")[:50] or "target"
    return next(
        name
        for name in (base, *(f"{base}-{number}" for number in range(2, 10_000)))
        if name not in {*names, "upload"}
    )


def _value(text: str) -> str:
    """The text as a value of oslo.config, which takes what follows a $ as the name of an option."""
    return text.replace("$", "$$")


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        WIDTH,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )
