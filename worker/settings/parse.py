"""Options to settings, with every fault of theirs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from oslo_config import cfg

from worker.broker.url import parse
from worker.core.errors import Misconfigured
from worker.core.target import UPLOAD, Policy, Reclaiming, Target, Uploads
from worker.engine.retry import Backoff
from worker.engine.runner import Limits
from worker.observe.web import address_of
from worker.settings.options import OPTIONS, SECONDS, SHARED_GROUP, TABLE, TARGET_OPTIONS, read
from worker.settings.values import Settings

# Keystone's own ids, with or without dashes, and the longer ones of LDAP
PROJECT_ID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")
LONGEST = 316_000_000.0
"""Seconds of any option: ten years."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")

SHARED = tuple(option for option in TABLE if option.group != "target")
"""Options that stand once; those of targets stand in a group for each."""
SWITCHES = {"upload": "uploads", "reclaim": "reclaim"}
"""Handlers that can be switched off, and the groups that do."""


def load(conf: cfg.ConfigOpts) -> Settings:
    """Return the settings; Misconfigured with every fault there is, not just the first."""
    faults = [*_unreadable(conf), *_unknown(conf), *_endless(conf)]
    urls = tuple(_split_urls(_get(conf, "notifications", "transport_urls")))
    faults += _url_faults(conf, urls)
    targets = tuple(_targets(conf, faults))
    bind = _bind(_get(conf, "probes", "bind"), faults)
    faults += _target_faults(targets)
    faults += _project_faults(conf)
    if _get(conf, "work", "backoff_max") < _get(conf, "work", "backoff_min"):
        faults.append("[work] backoff_max is below backoff_min")
    if _get(conf, "cloud", "poll_max") < _get(conf, "cloud", "poll_min"):
        faults.append("[cloud] poll_max is below poll_min")
    if 0 < _get(conf, "prewarm", "max_size") < _get(conf, "prewarm", "min_size"):
        faults.append("[prewarm] max_size is below min_size")
    if _get(conf, "prewarm", "property") in {
        _get(conf, "uploads", f"{name}_property") for name in ("source", "status")
    }:
        faults.append("[prewarm] property is one of [uploads] too: they mean different things")
    if not _get(conf, "uploads", "source_property"):
        faults.append(
            "[uploads] source_property is empty: set enabled = false to complete no uploads"
        )
    if _get(conf, "uploads", "source_property") == _get(conf, "uploads", "status_property"):
        faults.append("[uploads] source_property and status_property are the same")
    reclaiming = _reclaiming(conf, faults)
    if faults:
        raise Misconfigured(faults)
    return Settings(
        transport_urls=urls,
        management_urls=tuple(_split_urls(conf.notifications.management_urls)),
        limits=Limits(**_fields(conf, "limits")),
        backoff=Backoff(**_fields(conf, "backoff")),
        targets=targets,
        policy=Policy(**_fields(conf, "policy")),
        uploads=Uploads(**_fields(conf, "uploads")),
        reclaiming=reclaiming,
        switched_off=frozenset(name for name, group in SWITCHES.items() if not conf[group].enabled),
        bind=bind,
        config_files=tuple(conf.config_file or ()),
        config_dirs=tuple(conf.config_dir or ()),
        warnings=tuple(_unnamed(conf)),
        **_fields(conf, ""),
    )


def _fields(conf: cfg.ConfigOpts, part: str, *, group: str = "") -> dict[str, Any]:
    """Return the values of a part of the settings; `group` is where they are read, if the table
    does not say it."""
    return {
        option.attribute: option.value(read(conf, group or option.group, option.name))
        for option in TABLE
        if option.field and option.part == part
    }


def _reclaiming(conf: cfg.ConfigOpts, faults: list[str]) -> Reclaiming:
    text = _get(conf, "reclaim", "max_at_once").strip()
    at_once, share = Reclaiming().max_at_once, 0.0
    if match := SHARE.fullmatch(text):
        share = float(match.group(1)) / 100.0
    elif text.isdecimal():
        at_once = int(text)
    if not (match or text.isdecimal()) or share > 1.0:
        faults.append(
            f"[reclaim] max_at_once: {text!r} is neither a share (5%) nor a number of volumes"
        )
    return Reclaiming(
        enabled=_get(conf, "reclaim", "enabled"),
        dry_run=_get(conf, "reclaim", "dry_run"),
        grace=_get(conf, "reclaim", "grace"),
        max_at_once=at_once,
        max_share=share,
    )


def _target_faults(targets: Sequence[Target]) -> Iterator[str]:
    """Yield faults of targets that are the same place: each would take the other's Image-Volumes
    for its own."""
    for option in ("volume_type", "glance_store"):
        values = [getattr(target, option) for target in targets if getattr(target, option)]
        for value in dict.fromkeys(value for value in values if values.count(value) > 1):
            names = ", ".join(target.name for target in targets if getattr(target, option) == value)
            yield f"[prewarm] targets: {names} have the same {option} {value}"

    own = {target.volume_type: target.name for target in targets}
    served: dict[str, str] = {}
    for target in targets:
        for name in sorted(target.volume_types):
            other = own.get(name) or served.setdefault(name, target.name)
            if name in own or other != target.name:
                yield (f"[target:{target.name}] volume_types: {name} is of target {other} already")


def _project_faults(conf: cfg.ConfigOpts) -> Iterator[str]:
    for name in ("projects", "exclude_projects"):
        for project in _get(conf, "prewarm", name):
            if not PROJECT_ID.fullmatch(project):
                yield (
                    f"[prewarm] {name}: {project!r} is no project's id (32 hexadecimal digits; "
                    f"its name won't do)"
                )


def _unreadable(conf: cfg.ConfigOpts) -> Iterator[str]:
    """Yield faults of values that are not of their option's type."""
    for option in SHARED:
        try:
            read(conf, option.group, option.name)
        except (cfg.Error, ValueError) as error:
            # The rest of oslo.config's text is about its own insides
            yield f"[{option.group}] {option.name}: {str(error).rpartition('is not valid: ')[2]}"


def _endless(conf: cfg.ConfigOpts) -> Iterator[str]:
    """Yield faults of numbers that are none, and of seconds that are more than any socket or broker
    takes.

    oslo.config lets `nan` pass: it is neither below nor above a bound.
    """
    for option in SHARED:
        if isinstance(value := _get(conf, option.group, option.name), float) and math.isnan(value):
            yield f"[{option.group}] {option.name}: {value} is no number"
        elif option.unit == SECONDS:
            seconds = _get(conf, option.group, option.name)
            if not seconds <= LONGEST:
                yield f"[{option.group}] {option.name}: {seconds} is not up to {LONGEST:.0f}"


def _get(conf: cfg.ConfigOpts, group: str, name: str) -> Any:
    """Return an option's value, its default if the value can't be read: then we find the other
    faults too."""
    try:
        return read(conf, group, name)
    except (cfg.Error, ValueError):
        return next(one.initial for one in SHARED if (one.group, one.name) == (group, name))


def _split_urls(items: Sequence[str]) -> Iterator[str]:
    """Yield the URLs. A URL with several hosts was split at its commas, and is joined again."""
    url = ""
    for item in re.split(r"[;\s]+|,(?=[a-z+]+://)", ",".join(items)):
        url = item.strip().strip(",")
        if url:
            yield url


def _url_faults(conf: cfg.ConfigOpts, urls: Sequence[str]) -> Iterator[str]:
    if not urls:
        yield (
            "[notifications] transport_urls is empty: which broker do Glance and Cinder publish to?"
        )
    for url in urls:
        if _get(conf, "notifications", "driver") == "rabbit":
            yield from _broker_faults("[notifications] transport_urls", url)
        elif not urlsplit(url).scheme:
            yield "[notifications] transport_urls: not an oslo.messaging URL"
    for url in _split_urls(_get(conf, "notifications", "management_urls")):
        if not _is_http(url):
            yield (
                "[notifications] management_urls: expected http(s)://user:password@host:port, "
                "percent-encoded"
            )
    collector = _get(conf, "tracing", "otlp_endpoint")
    if collector and not _is_http(collector):
        yield "[tracing] otlp_endpoint: expected http(s)://host:port"
    work_url = _get(conf, "work", "url")
    if work_url != "memory://":
        yield from _broker_faults("[work] url", work_url)


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in {"http", "https"}
            and bool(parts.hostname)
            and (parts.port is None or parts.port > 0)
        )
    except ValueError:
        return False


def _broker_faults(name: str, url: str) -> Iterator[str]:
    try:
        parse(url)
    except Misconfigured as error:
        yield from (f"{name}: {fault}" for fault in error.faults)


def _targets(conf: cfg.ConfigOpts, faults: list[str]) -> Iterator[Target]:
    """Yield the named targets, each read from its own group."""
    names = [name for name in _get(conf, "prewarm", "targets") if name]
    if not names:
        faults.append("[prewarm] targets is empty: nothing would be kept warm")
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            faults.append(f"[prewarm] targets names {name} twice")
        if name == UPLOAD:
            faults.append(
                f"[prewarm] targets: {UPLOAD!r} is what volumes of uploads are marked with"
            )
        if not NAME.fullmatch(name):
            faults.append(
                f"[prewarm] targets: {name!r} is no name (letters, digits, - and _, 63 at most)"
            )
            continue
        group = f"target:{name}"
        conf.register_opts(TARGET_OPTIONS, group=cfg.OptGroup(group))
        try:
            read = _fields(conf, "target", group=group)
            read["pools"] = tuple(pool for pool in read["pools"] if pool != "auto")
            read["volume_type"] = read["volume_type"] or ""
            target = Target(name=name, **read)
        except (cfg.Error, ValueError) as error:
            faults.append(f"[{group}]: {error}")
            continue
        faults += (
            f"[{group}] {name}: nan is no number"
            for name, value in read.items()
            if isinstance(value, float) and math.isnan(value)
        )
        if not target.volume_type:
            faults.append(f"[{group}] volume_type is missing")
        if target.disk_formats - {"raw"} and target.strategy not in ("auto", "cache"):
            faults.append(
                f"[{group}] disk_formats: Cinder clones nothing but raw with strategy "
                f"{target.strategy}"
            )
        if target.strategy == "location" and not target.glance_store:
            faults.append(f"[{group}] glance_store is missing: strategy location needs it")
        if target.strategy == "native" and not target.native_stores:
            faults.append(f"[{group}] native_stores is missing: strategy native needs it")
        yield target


def _unknown(conf: cfg.ConfigOpts) -> Iterator[str]:
    """Yield faults of groups and options that mean nothing: most likely typing errors, which nobody
    would notice."""
    known = {group.name: options for group, options in OPTIONS.items()}
    known |= {f"target:{name}": TARGET_OPTIONS for name in _get(conf, "prewarm", "targets")}
    for section, given in _sections(conf):
        if section.startswith("oslo_") or section in (SHARED_GROUP, "keystone_authtoken"):
            # Of libraries and services that share the file; with driver = oslo, oslo.messaging
            # reads its own
            continue
        if section not in known:
            if not given:
                # A title without anything under it, as the sample has them
                continue
            if not section.startswith("target:"):
                yield f"[{section}]: there is no such group"
            continue
        names = {name for option in known[section] for name in (option.name, option.dest)}
        yield from (
            f"[{section}] {name}: there is no such option" for name in given if name not in names
        )


def _unnamed(conf: cfg.ConfigOpts) -> Iterator[str]:
    """Yield warnings about targets that are described and not named: they are switched off."""
    named = {f"target:{name}" for name in _get(conf, "prewarm", "targets")}
    for section in dict.fromkeys(section for section, given in _sections(conf) if given):
        if section.startswith("target:") and section not in named:
            yield f"[{section}] is switched off: [prewarm] targets does not name it"


def _sections(conf: cfg.ConfigOpts) -> Iterator[tuple[str, Any]]:
    """Yield the groups of the files that were read, with the options that they set."""
    # oslo.config has no other way to read the content of its files
    for file in [] if conf._namespace is None else conf._namespace._parsed:
        yield from file.items()


def _bind(text: str, faults: list[str]) -> tuple[str, int] | None:
    address = address_of(text) if text else None
    if text and address is None:
        faults.append(
            f"[probes] bind: {text[:100]!r} is not HOST:PORT, with an address of IPv6 as "
            f"[ADDRESS]:PORT"
        )
    return address
