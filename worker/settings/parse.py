"""Options to settings, with every fault of theirs."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from typing import Any

from oslo_config import cfg

from worker.core.errors import Misconfigured
from worker.core.target import UPLOAD, Policy, Reclaiming, Target, Uploads
from worker.engine.limits import Limits
from worker.engine.retry import Backoff
from worker.observe.address import address_of
from worker.settings import faults
from worker.settings.faults import get, split_urls
from worker.settings.options import TABLE, TARGET_OPTIONS, read
from worker.settings.values import Settings

SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")

SWITCHES = {"upload": "uploads", "reclaim": "reclaim"}
"""Handlers that can be switched off, and the groups that do."""


def load(conf: cfg.ConfigOpts) -> Settings:
    """Return the settings; Misconfigured with every fault there is, not just the first."""
    found = [*faults.unreadable(conf), *faults.unknown(conf), *faults.endless(conf)]
    urls = tuple(split_urls(get(conf, "notifications", "transport_urls")))
    found += faults.of_urls(conf, urls)
    found += faults.of_notifications(conf)
    targets = tuple(_targets(conf, found))
    bind = _bind(get(conf, "probes", "bind"), found)
    found += faults.of_targets(targets)
    found += faults.of_projects(conf)
    found += faults.of_pairs(conf)
    reclaiming = _reclaiming(conf, found)
    if found:
        raise Misconfigured(*found)
    return Settings(
        transport_urls=urls,
        management_urls=tuple(split_urls(conf.notifications.management_urls)),
        limits=Limits(**_fields(conf, "limits")),
        backoff=Backoff(**_fields(conf, "backoff")),
        targets=targets,
        policy=Policy(**_fields(conf, "policy")),
        uploads=Uploads(**_fields(conf, "uploads")),
        reclaiming=reclaiming,
        switched_off=frozenset(name for name, group in SWITCHES.items() if not conf[group].enabled),
        bind=bind,
        log_level="debug" if conf.debug else conf.log.level,
        log_style="journal" if conf.use_journal else conf.log.format,
        log_file=_log_file(conf.log_dir, conf.log_file),
        config_files=tuple(conf.config_file or ()),
        config_dirs=tuple(conf.config_dir or ()),
        warnings=tuple(faults.unnamed(conf)),
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


def _reclaiming(conf: cfg.ConfigOpts, found: list[str]) -> Reclaiming:
    text = get(conf, "reclaim", "max_at_once").strip()
    at_once, share = Reclaiming().max_at_once, 0.0
    if match := SHARE.fullmatch(text):
        share = float(match.group(1)) / 100.0
    elif text.isdecimal():
        at_once = int(text)
    if not (match or text.isdecimal()) or share > 1.0:
        found.append(
            f"[reclaim] max_at_once: {text!r} is neither a share (5%) nor a number of volumes"
        )
    return Reclaiming(
        enabled=get(conf, "reclaim", "enabled"),
        dry_run=get(conf, "reclaim", "dry_run"),
        grace=get(conf, "reclaim", "grace"),
        max_at_once=at_once,
        max_share=share,
    )


def _targets(conf: cfg.ConfigOpts, found: list[str]) -> Iterator[Target]:
    """Yield the named targets, each read from its own group."""
    names = [name for name in get(conf, "prewarm", "targets") if name]
    if not names:
        found.append("[prewarm] targets is empty: nothing would be kept warm")
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            found.append(f"[prewarm] targets names {name} twice")
        if name == UPLOAD:
            found.append(
                f"[prewarm] targets: {UPLOAD!r} is what volumes of uploads are marked with"
            )
        if not NAME.fullmatch(name):
            found.append(
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
            found.append(f"[{group}]: {error}")
            continue
        found += (
            f"[{group}] {name}: nan is no number"
            for name, value in read.items()
            if isinstance(value, float) and math.isnan(value)
        )
        if not target.volume_type:
            found.append(f"[{group}] volume_type is missing")
        if target.disk_formats - {"raw"} and target.strategy not in ("auto", "cache"):
            found.append(
                f"[{group}] disk_formats: Cinder clones nothing but raw with strategy "
                f"{target.strategy}"
            )
        if target.strategy == "location" and not target.glance_store:
            found.append(f"[{group}] glance_store is missing: strategy location needs it")
        if target.strategy == "native" and not target.native_stores:
            found.append(f"[{group}] native_stores is missing: strategy native needs it")
        yield target


def _log_file(folder: str, file: str) -> str:
    """Return the path of the log file, "" without one; as in every service of OpenStack, a folder
    is enough."""
    name = file or ("image-volume-worker.log" if folder else "")
    return os.path.join(folder, name) if name else ""


def _bind(text: str, found: list[str]) -> tuple[str, int] | None:
    address = address_of(text) if text else None
    if text and address is None:
        found.append(
            f"[probes] bind: {text[:100]!r} is not HOST:PORT, with an address of IPv6 as "
            f"[ADDRESS]:PORT"
        )
    return address
