"""Faults of a configuration, each in words that name the group and the option."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from oslo_config import cfg

from worker.broker.url import parse
from worker.core.errors import Misconfigured
from worker.core.target import Target
from worker.settings.option import SECONDS
from worker.settings.options import OPTIONS, SHARED_GROUP, TABLE, TARGET_OPTIONS, read
from worker.settings.values import MEMORY

# Keystone's own ids, with or without dashes, and the longer ones of LDAP
PROJECT_ID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
PRIORITIES = frozenset({"audit", "debug", "info", "warn", "error", "critical", "sample"})
"""Those that oslo.messaging's notifier publishes under."""
LONGEST_QUEUE = 128
"""Bytes of the queue's name: RabbitMQ takes 255, and the lanes' names have a target's besides."""
LONGEST = 316_000_000.0
"""Seconds of any option: ten years."""
SHARED = tuple(option for option in TABLE if option.group != "target")
"""Options that stand once; those of targets stand in a group for each."""


def get(conf: cfg.ConfigOpts, group: str, name: str) -> Any:
    """Return an option's value, its default if the value can't be read: then we find the other
    faults too."""
    try:
        return read(conf, group, name)
    except (cfg.Error, ValueError):
        return next(one.initial for one in SHARED if (one.group, one.name) == (group, name))


def split_urls(items: Sequence[str]) -> Iterator[str]:
    """Yield the URLs. A URL with several hosts was split at its commas, and is joined again."""
    url = ""
    for item in re.split(r"[;\s]+|,(?=[a-z+]+://)", ",".join(items)):
        url = item.strip().strip(",")
        if url:
            yield url


def of_pairs(conf: cfg.ConfigOpts) -> Iterator[str]:
    """Yield faults of options that do not go together."""
    if get(conf, "work", "backoff_max") < get(conf, "work", "backoff_min"):
        yield "[work] backoff_max is below backoff_min"
    if get(conf, "cloud", "poll_max") < get(conf, "cloud", "poll_min"):
        yield "[cloud] poll_max is below poll_min"
    if 0 < get(conf, "prewarm", "max_size") < get(conf, "prewarm", "min_size"):
        yield "[prewarm] max_size is below min_size"
    if get(conf, "prewarm", "property") in {
        get(conf, "uploads", f"{name}_property") for name in ("source", "status")
    }:
        yield "[prewarm] property is one of [uploads] too: they mean different things"
    if not get(conf, "uploads", "source_property"):
        yield "[uploads] source_property is empty: set enabled = false to complete no uploads"
    if get(conf, "uploads", "source_property") == get(conf, "uploads", "status_property"):
        yield "[uploads] source_property and status_property are the same"


def of_targets(targets: Sequence[Target]) -> Iterator[str]:
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


def of_projects(conf: cfg.ConfigOpts) -> Iterator[str]:
    """Yield faults of projects that are named otherwise than by their ids."""
    for name in ("projects", "exclude_projects"):
        for project in get(conf, "prewarm", name):
            if not PROJECT_ID.fullmatch(project):
                yield (
                    f"[prewarm] {name}: {project!r} is no project's id (32 hexadecimal digits; "
                    f"its name won't do)"
                )


def unreadable(conf: cfg.ConfigOpts) -> Iterator[str]:
    """Yield faults of values that are not of their option's type."""
    for option in SHARED:
        try:
            read(conf, option.group, option.name)
        except (cfg.Error, ValueError) as error:
            # The rest of oslo.config's text is about its own insides
            yield f"[{option.group}] {option.name}: {str(error).rpartition('is not valid: ')[2]}"


def endless(conf: cfg.ConfigOpts) -> Iterator[str]:
    """Yield faults of numbers that are none, and of seconds that are more than any socket or broker
    takes.

    oslo.config lets `nan` pass: it is neither below nor above a bound.
    """
    for option in SHARED:
        if isinstance(value := get(conf, option.group, option.name), float) and math.isnan(value):
            yield f"[{option.group}] {option.name}: {value} is no number"
        elif option.unit == SECONDS:
            seconds = get(conf, option.group, option.name)
            if not seconds <= LONGEST:
                yield f"[{option.group}] {option.name}: {seconds} is not up to {LONGEST:.0f}"


def of_urls(conf: cfg.ConfigOpts, urls: Sequence[str]) -> Iterator[str]:
    """Yield faults of URLs; `urls` are those of the brokers that the services publish to."""
    if not urls:
        yield (
            "[notifications] transport_urls is empty: which broker do Glance and Cinder publish to?"
        )
    for url in urls:
        if get(conf, "notifications", "driver") == "rabbit":
            yield from _broker("[notifications] transport_urls", url)
        elif not urlsplit(url).scheme:
            yield "[notifications] transport_urls: not an oslo.messaging URL"
    for url in split_urls(get(conf, "notifications", "management_urls")):
        if not _is_http(url):
            yield (
                "[notifications] management_urls: expected http(s)://user:password@host:port, "
                "percent-encoded"
            )
    collector = get(conf, "tracing", "otlp_endpoint")
    if collector and not _is_http(collector):
        yield "[tracing] otlp_endpoint: expected http(s)://host:port"
    work_url = get(conf, "work", "url")
    if work_url != MEMORY:
        yield from _broker("[work] url", work_url)


def of_notifications(conf: cfg.ConfigOpts) -> Iterator[str]:
    """Yield faults of what to listen to, with which nothing would ever be heard, and of our queue's
    name."""
    for name in ("exchanges", "topics", "priorities"):
        if not any(get(conf, "notifications", name)):
            yield f"[notifications] {name} is empty: nothing would be heard"
    for one in get(conf, "notifications", "priorities"):
        if one not in PRIORITIES:
            yield (
                f"[notifications] priorities: {one[:100]!r} is none of "
                f"{', '.join(sorted(PRIORITIES))}"
            )
    queue = get(conf, "notifications", "queue")
    if not queue or queue.startswith("amq.") or len(queue.encode()) > LONGEST_QUEUE:
        yield (
            f"[notifications] queue: {queue[:100]!r} is no name for a queue (1 to {LONGEST_QUEUE} "
            "bytes, not with amq. at its beginning)"
        )


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


def _broker(name: str, url: str) -> Iterator[str]:
    try:
        parse(url)
    except Misconfigured as error:
        yield from (f"{name}: {fault}" for fault in error.faults)


def unknown(conf: cfg.ConfigOpts) -> Iterator[str]:
    """Yield faults of groups and options that mean nothing: most likely typing errors, which nobody
    would notice."""
    known = {group.name: options for group, options in OPTIONS.items()}
    known |= {f"target:{name}": TARGET_OPTIONS for name in get(conf, "prewarm", "targets")}
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


def unnamed(conf: cfg.ConfigOpts) -> Iterator[str]:
    """Yield warnings about targets that are described and not named: they are switched off."""
    named = {f"target:{name}" for name in get(conf, "prewarm", "targets")}
    for section in dict.fromkeys(section for section, given in _sections(conf) if given):
        if section.startswith("target:") and section not in named:
            yield f"[{section}] is switched off: [prewarm] targets does not name it"


def _sections(conf: cfg.ConfigOpts) -> Iterator[tuple[str, Any]]:
    """Yield the groups of the files that were read, with the options that they set."""
    # oslo.config has no other way to read the content of its files
    for file in [] if conf._namespace is None else conf._namespace._parsed:
        yield from file.items()
