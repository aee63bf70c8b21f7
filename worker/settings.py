"""Configuration: the options, and what they come to as values. All faults are told at once."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar
from urllib.parse import urlsplit

from oslo_config import cfg, types

from worker.broker.connection import parse
from worker.core.errors import Misconfigured
from worker.core.target import UPLOAD, Policy, Reclaiming, Target, Uploads
from worker.engine.retry import Backoff
from worker.engine.runner import Limits
from worker.observe.web import address_of

T = TypeVar("T")
# Keystone's own, with or without dashes, and the longer ones of LDAP
PROJECT_ID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")
# Seconds of any option: some ten years
LONGEST = 316_000_000.0
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")

NOTIFICATIONS = cfg.OptGroup("notifications", title="Where notifications come from")
WORK = cfg.OptGroup("work", title="Where jobs wait, and how often they are tried")
CLOUD = cfg.OptGroup("cloud", title="The cloud and our login")
PREWARM = cfg.OptGroup("prewarm", title="Which images are kept warm, and where")
UPLOADS = cfg.OptGroup("uploads", title="Making images of volumes without copying them")
RECLAIM = cfg.OptGroup("reclaim", title="Deleting what nobody needs any more")
RESYNC = cfg.OptGroup(
    "resync", title="The bulk comparison that heals what notifications have missed"
)
PROBES = cfg.OptGroup("probes", title="Metrics and health over HTTP")
LOG = cfg.OptGroup("log", title="Logs")

# Their fields' defaults are the options' defaults: none stands twice
_LIMITS, _BACKOFF, _POLICY, _UPLOADS, _RECLAIMING = (
    Limits(),
    Backoff(),
    Policy(),
    Uploads(),
    Reclaiming(),
)
_TARGET = Target(name="", volume_type="")
VISIBILITIES = ["public", "community", "shared", "private"]

OPTIONS: dict[cfg.OptGroup, list[cfg.Opt]] = {
    NOTIFICATIONS: [
        cfg.ListOpt(
            "transport_urls",
            default=[],
            item_type=types.String(),
            sample_default="rabbit://openstack:PASSWORD@rabbit-1:5672/",
            secret=True,
            help="Brokers that Glance and Cinder publish to, as oslo.messaging URLs, split by "
            "spaces or semicolons if "
            "they hold several hosts (which commas separate). Often one for each service, since "
            "vhosts differ.",
        ),
        cfg.ListOpt(
            "exchanges",
            default=["glance", "openstack", "cinder"],
            help="control_exchange of the services.",
        ),
        cfg.ListOpt(
            "topics", default=["notifications"], help="Topics of [oslo_messaging_notifications]."
        ),
        cfg.ListOpt("priorities", default=["info", "error"], help="Priorities to hear of."),
        cfg.StrOpt(
            "queue", default="image-volume-worker", help="Our own queue; replicas share it."
        ),
        cfg.StrOpt(
            "queue_type",
            default="quorum",
            choices=["quorum", "classic"],
            help="Type of our queue; classic (durable) for a broker without quorum queues.",
        ),
        cfg.IntOpt(
            "queue_max_length",
            default=100_000,
            min=1000,
            help="Notifications kept while no worker runs; the oldest are dropped, resync finds "
            "what they meant.",
        ),
        cfg.IntOpt(
            "queue_expires",
            default=86_400,
            min=60,
            # RabbitMQ takes 32 bits of milliseconds
            max=4_294_967,
            help="Seconds without a worker after which the broker removes our queue.",
        ),
        cfg.IntOpt(
            "prefetch",
            default=500,
            min=1,
            max=10_000,
            help="Notifications taken from the broker at once.",
        ),
        cfg.StrOpt(
            "driver",
            default="rabbit",
            choices=["rabbit", "oslo"],
            help="rabbit: our own consumer; oslo: oslo.messaging's listener, for transports that "
            "are not RabbitMQ. "
            "It takes the options of [oslo_messaging_*] from the same files (TLS, SASL, quorum "
            "queues), as a service "
            "does; rabbit takes TLS from the URL, and none of these. The two make queues of "
            "different kinds: change "
            "queue with it.",
        ),
        cfg.ListOpt(
            "management_urls",
            default=[],
            item_type=types.String(),
            sample_default="http://monitor:PASSWORD@rabbit-1:15672",
            secret=True,
            help="RabbitMQ's management API, for doctor alone, which finds policies and alarms "
            "by it; one of each "
            "cluster, in any order, also of that in [work] url. http:// or "
            "https://user:password@host:port; the user "
            "needs the tag management, better monitoring and policymaker, and read rights on the "
            "vhosts.",
        ),
    ],
    WORK: [
        cfg.StrOpt(
            "url",
            default="memory://",
            secret=True,
            help="Where jobs wait: memory:// (one process; resync at start finds them again) or "
            "amqp://user:password@"
            "host:port/vhost (RabbitMQ; several replicas). A vhost of its own: some "
            "distributions let the messages of "
            "the services' vhosts expire after 70 s.",
        ),
        cfg.IntOpt(
            "max_attempts",
            default=_LIMITS.max_attempts,
            min=1,
            help="Failed tries after which a job becomes a dead letter.",
        ),
        cfg.FloatOpt(
            "backoff_min",
            default=_BACKOFF.shortest,
            min=0.1,
            help="Seconds before the first retry of a job.",
        ),
        cfg.FloatOpt(
            "backoff_max",
            default=_BACKOFF.longest,
            min=1.0,
            help="Seconds between retries at the most.",
        ),
        cfg.FloatOpt(
            "job_timeout",
            default=_LIMITS.job,
            min=1.0,
            help="Seconds that one try of a job may take.",
        ),
        cfg.FloatOpt(
            "hold_limit",
            default=_LIMITS.hold,
            min=10.0,
            max=1200.0,
            help="Seconds that a job is held while a volume is made, before it goes back into "
            "its lane; a third of "
            "that while it waits for a slot. RabbitMQ closes a channel that holds a delivery for "
            "30 minutes.",
        ),
        cfg.FloatOpt(
            "drain_timeout",
            default=_LIMITS.drain,
            min=0.0,
            help="Seconds for jobs in progress to end after SIGTERM.",
        ),
        cfg.FloatOpt(
            "park_retry_after",
            default=_LIMITS.park_retry_after,
            min=0.0,
            help="Seconds that resync leaves a dead letter alone.",
        ),
    ],
    CLOUD: [
        cfg.StrOpt(
            "name",
            default="",
            help="Entry of clouds.yaml; else OS_CLOUD, else the OS_* variables. The project that "
            "the credentials are "
            "scoped to owns the Image-Volumes: it must be Cinder's internal tenant and the "
            "project of Glance's cinder "
            "stores. Roles: admin (or see admin_role) and service.",
        ),
        cfg.StrOpt(
            "admin_role",
            default="admin",
            help="Role of the login that makes Glance and Cinder show what belongs to other "
            "projects. Another one than "
            "admin only together with the policy files of config/policy.",
        ),
        cfg.IntOpt(
            "api_concurrency", default=16, min=1, max=256, help="Requests under way at once."
        ),
        cfg.FloatOpt(
            "api_timeout",
            default=30.0,
            min=1.0,
            help="Seconds that one request may take in all, with the token it needs.",
        ),
        cfg.FloatOpt(
            "poll_min",
            default=_LIMITS.poll_min,
            min=0.1,
            help="Seconds between the first polls of what is being made.",
        ),
        cfg.FloatOpt(
            "poll_max",
            default=_LIMITS.poll_max,
            min=0.5,
            help="Seconds between polls at the most; notifications wake us.",
        ),
    ],
    PREWARM: [
        cfg.ListOpt(
            "targets", default=[], help="Names of the targets; each has a group [target:NAME]."
        ),
        cfg.ListOpt(
            "visibilities",
            default=[one for one in VISIBILITIES if one in _POLICY.visibilities],
            item_type=types.String(choices=VISIBILITIES),
            help="Visibilities of images that are kept warm.",
        ),
        cfg.ListOpt(
            "projects",
            default=[],
            help="Ids of the projects whose images are kept warm; empty for all.",
        ),
        cfg.ListOpt("exclude_projects", default=[], help="Ids of projects whose images are not."),
        cfg.IntOpt("min_size", default=_POLICY.min_size, min=0, help="Smallest image, in bytes."),
        cfg.IntOpt(
            "max_size",
            default=_POLICY.max_size,
            min=0,
            help="Largest image, in bytes; 0 for any. Where Cinder makes the volume (strategies "
            "location and cache), "
            "min_disk and virtual_size count too: they decide how much is allocated.",
        ),
        cfg.StrOpt(
            "property",
            default=_POLICY.property,
            help="Image property with the owner's no, or yes in spite of visibilities and "
            "min_size: yes on a public "
            "image, yes/<image id> on any. A plain yes on another image may be inherited, and "
            "does not count.",
        ),
        cfg.FloatOpt(
            "settle",
            default=_POLICY.settle,
            min=0.0,
            help="Seconds an image must have been left alone before Cinder's cache entry of it "
            "is made anew.",
        ),
        cfg.FloatOpt(
            "rewarm_interval",
            default=_POLICY.rewarm_interval,
            min=0.0,
            help="Seconds between two of these at least, from the second one on, for an image "
            "that is changed all day.",
        ),
        cfg.StrOpt(
            "when",
            default=_POLICY.when,
            choices=["new", "used"],
            help="new: at once; used: when a second volume was made of the image on the target, "
            "by whomever. For "
            "clouds with thousands of images of which few are booted.",
        ),
    ],
    UPLOADS: [
        cfg.BoolOpt(
            "enabled",
            default=True,
            help="Complete uploads: Cinder's own, and those asked for by property.",
        ),
        cfg.StrOpt(
            "source_property",
            default=_UPLOADS.source_property,
            help="Property of a queued raw/bare image with the id of the volume that it is to be "
            "made of.",
        ),
        cfg.StrOpt(
            "status_property",
            default=_UPLOADS.status_property,
            help="Property that tells the owner of such an image what is in the way; empty for "
            "none.",
        ),
        cfg.FloatOpt(
            "grace",
            default=_UPLOADS.grace,
            min=5.0,
            help="Seconds that an upload of Cinder's own must have been still before it counts "
            "as stuck.",
        ),
        cfg.BoolOpt(
            "allow_in_use",
            default=_UPLOADS.allow_in_use,
            help="Clone attached volumes too. What their guest has not written out is missing in "
            "the image.",
        ),
        cfg.StrOpt(
            "location_api",
            default=_UPLOADS.location_api,
            choices=["auto", "new", "old"],
            help="new: POST /v2/images/{id}/locations, of Glance 2.17 and newer, role service; "
            "old: PATCH, which needs "
            "show_multiple_locations (OSSN-0065, OSSN-0090); auto: new where Glance has it.",
        ),
        cfg.ListOpt(
            "reserved_image_namespaces",
            default=list(_UPLOADS.reserved_image_namespaces),
            help="Beginnings of names: no such property of the image that a volume was made from "
            "is given to the image "
            "made of the volume. As Cinder's option of this name, and everything that Glance's "
            "property protections "
            "keep from users: the worker may set it, and users can write anything into their "
            "volumes' image metadata.",
        ),
    ],
    RECLAIM: [
        cfg.BoolOpt(
            "enabled",
            default=True,
            help="Delete the Image-Volumes of deleted images, and those that we made of images "
            "that are not wanted "
            "any more or for which a target's budget has no room. Else a target with a full "
            "budget takes nothing more.",
        ),
        cfg.BoolOpt(
            "dry_run",
            default=_RECLAIMING.dry_run,
            help="Only say in the log what would be deleted.",
        ),
        cfg.FloatOpt(
            "grace",
            default=_RECLAIMING.grace,
            min=0.0,
            help="Seconds for which Glance must have answered that an image is not there, at "
            "five looks spread over "
            "them, before the image counts as deleted although its deletion was not heard of. "
            "Where Glance deletes "
            "with a delay (delayed_delete), set it above the delay (scrub_time).",
        ),
        cfg.StrOpt(
            "max_at_once",
            default=f"{_RECLAIMING.max_share:.0%}",
            help="The brake. If more Image-Volumes than this belong to images that are not "
            "found, though no deletion "
            "was heard of, none of them is deleted before an operator says `reclaim --confirm`: "
            "Glance may have lost "
            "its database. A share of all Image-Volumes, at least 5, or a number.",
        ),
    ],
    RESYNC: [
        cfg.FloatOpt("interval", default=3600.0, min=10.0, help="Seconds between two comparisons."),
        cfg.BoolOpt("on_start", default=True, help="Compare at start too. Needed with memory://."),
    ],
    PROBES: [
        cfg.StrOpt(
            "bind",
            default="127.0.0.1:9417",
            help="HOST:PORT of /metrics, /healthz, /readyz, [::]:PORT for all of IPv6 and IPv4; "
            "empty for none.",
        ),
        cfg.BoolOpt(
            "page",
            default=True,
            help="Serve a page for people at / there too, and what `status` asks. It shows ids "
            "of images, names of "
            "public ones, and reasons of failures to everybody who gets there; nothing can be "
            "changed by it.",
        ),
    ],
    LOG: [
        cfg.StrOpt(
            "level",
            default="info",
            choices=["debug", "info", "warning", "error"],
            help="Least level shown.",
        ),
        cfg.StrOpt(
            "format",
            default="auto",
            choices=["auto", "json", "text", "journal"],
            help="auto: text on a terminal, else json. journal: entries of systemd's journal, "
            "each field one of its "
            "own (journalctl EVENT=job_parked).",
        ),
    ],
}

TARGET_OPTIONS: list[cfg.Opt] = [
    cfg.StrOpt("volume_type", help="Name of a volume type. Required."),
    cfg.StrOpt(
        "strategy",
        default=_TARGET.strategy,
        choices=["auto", "store", "location", "cache", "native"],
        help="How an image is made warm there. store: Glance copies it into its cinder store on "
        "that backend; "
        "cache: Cinder fills its image-volume cache, with images of any format; location: we "
        "make a volume and add it "
        "as a location (needs show_multiple_locations, which tells every reader of an image "
        "where its data lies: "
        "OSSN-0090); native: Cinder's driver clones the image from one of native_stores; auto: "
        "nothing for what Cinder "
        "clones by itself, store for raw images where Glance has one, else cache.",
    ),
    cfg.StrOpt(
        "glance_store",
        default=_TARGET.glance_store,
        help="Glance's cinder store on that backend; found by the volume type if empty.",
    ),
    cfg.ListOpt(
        "native_stores",
        default=list(_TARGET.native_stores),
        help="Stores of Glance from which Cinder's driver clones raw images by itself: rbd "
        "stores on the same Ceph "
        "cluster, say. A raw image that is in none of them is copied into the first. Found out "
        "for rbd if empty, by "
        "one volume a day that is deleted at once.",
    ),
    cfg.ListOpt(
        "pools",
        default=["auto"],
        help="Pools to keep images warm in, by names or wildcards, host@backend#pool; auto: all "
        "that the volume type "
        "leads to. Where they are several, each gets an entry of Cinder's image-volume cache, by "
        "a private volume type "
        "for each that the worker makes.",
    ),
    cfg.ListOpt(
        "exclude_pools",
        default=list(_TARGET.exclude_pools),
        help="Pools to leave out, by names or wildcards.",
    ),
    cfg.StrOpt(
        "availability_zone",
        default=_TARGET.availability_zone,
        help="Availability zone of volumes we make; Cinder's default if empty.",
    ),
    cfg.IntOpt(
        "max_concurrent",
        default=_TARGET.max_concurrent,
        min=1,
        max=1000,
        help="Image-Volumes made at once.",
    ),
    cfg.IntOpt(
        "max_gigabytes",
        default=_TARGET.max_gigabytes,
        min=0,
        help="GiB that the Image-Volumes we put there may have together, as they are allocated; "
        "0 for no limit. When "
        "they are used up, the least recently used one makes room for an image that is newer or "
        "was used since.",
    ),
    cfg.IntOpt(
        "max_count",
        default=_TARGET.max_count,
        min=0,
        help="How many Image-Volumes we may put there; 0 for no limit.",
    ),
    cfg.ListOpt(
        "disk_formats",
        default=sorted(_TARGET.disk_formats),
        item_type=types.String(
            choices=["raw", "qcow2", "vmdk", "vdi", "vhd", "vhdx", "iso", "ploop"]
        ),
        help="Formats kept warm. If empty: raw, and with strategy auto or cache also qcow2, "
        "vmdk, vdi, vhd, vhdx and "
        "ploop, which Cinder's image-volume cache keeps converted.",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The configuration as values, checked. Times in seconds."""

    transport_urls: tuple[str, ...]
    exchanges: tuple[str, ...]
    topics: tuple[str, ...]
    priorities: tuple[str, ...]
    queue: str
    queue_type: str
    queue_max_length: int
    queue_expires: int
    prefetch: int
    driver: str
    management_urls: tuple[str, ...]
    work_url: str
    limits: Limits
    backoff: Backoff
    cloud_name: str
    admin_role: str
    api_concurrency: int
    api_timeout: float
    targets: tuple[Target, ...]
    policy: Policy
    uploads: Uploads
    reclaiming: Reclaiming
    switched_off: frozenset[str]
    resync_interval: float
    resync_on_start: bool
    bind: tuple[str, int] | None
    page: bool
    config_files: tuple[str, ...] = ()
    config_dirs: tuple[str, ...] = ()
    """What was read, for the options of oslo.messaging, which only oslo.messaging knows."""

    @property
    def lanes(self) -> list[str]:
        """The lanes that a worker with these settings opens."""
        others = [name for name in ("upload", "reclaim") if name not in self.switched_off]
        return [*others, *(f"prewarm.{target.name}" for target in self.targets)]


def register(conf: cfg.ConfigOpts) -> None:
    """Make the options known, but for those of targets: these need the names first."""
    for group, options in OPTIONS.items():
        conf.register_group(group)
        conf.register_opts(options, group=group)


def list_opts() -> list[tuple[cfg.OptGroup, list[cfg.Opt]]]:
    """All options, for oslo-config-generator."""
    return [*OPTIONS.items(), (cfg.OptGroup("target:NAME", title="One target"), TARGET_OPTIONS)]


def load(conf: cfg.ConfigOpts) -> Settings:
    """The settings; Misconfigured with every fault there is, not just the first."""
    faults = [*_unreadable(conf), *_unknown(conf), *_endless(conf)]
    urls = tuple(_split_urls(_get(conf, NOTIFICATIONS, "transport_urls")))
    faults += _url_faults(conf, urls)
    targets = tuple(_targets(conf, faults))
    bind = _bind(_get(conf, PROBES, "bind"), faults)
    faults += _target_faults(targets)
    faults += _project_faults(conf)
    if _get(conf, WORK, "backoff_max") < _get(conf, WORK, "backoff_min"):
        faults.append("[work] backoff_max is below backoff_min")
    if _get(conf, CLOUD, "poll_max") < _get(conf, CLOUD, "poll_min"):
        faults.append("[cloud] poll_max is below poll_min")
    if 0 < _get(conf, PREWARM, "max_size") < _get(conf, PREWARM, "min_size"):
        faults.append("[prewarm] max_size is below min_size")
    if _get(conf, PREWARM, "property") in {
        _get(conf, UPLOADS, f"{name}_property") for name in ("source", "status")
    }:
        faults.append("[prewarm] property is one of [uploads] too: they mean different things")
    if not _get(conf, UPLOADS, "source_property"):
        faults.append(
            "[uploads] source_property is empty: set enabled = false to complete no uploads"
        )
    if _get(conf, UPLOADS, "source_property") == _get(conf, UPLOADS, "status_property"):
        faults.append("[uploads] source_property and status_property are the same")
    reclaiming = _reclaiming(conf, faults)
    if faults:
        raise Misconfigured(faults)
    return Settings(
        transport_urls=urls,
        exchanges=tuple(conf.notifications.exchanges),
        topics=tuple(conf.notifications.topics),
        priorities=tuple(conf.notifications.priorities),
        queue=conf.notifications.queue,
        queue_type=conf.notifications.queue_type,
        queue_max_length=conf.notifications.queue_max_length,
        queue_expires=conf.notifications.queue_expires,
        prefetch=conf.notifications.prefetch,
        driver=conf.notifications.driver,
        management_urls=tuple(_split_urls(conf.notifications.management_urls)),
        work_url=conf.work.url,
        limits=Limits(
            max_attempts=conf.work.max_attempts,
            job=conf.work.job_timeout,
            hold=conf.work.hold_limit,
            poll_min=conf.cloud.poll_min,
            poll_max=conf.cloud.poll_max,
            drain=conf.work.drain_timeout,
            park_retry_after=conf.work.park_retry_after,
        ),
        backoff=Backoff(shortest=conf.work.backoff_min, longest=conf.work.backoff_max),
        cloud_name=conf.cloud.name,
        admin_role=conf.cloud.admin_role,
        api_concurrency=conf.cloud.api_concurrency,
        api_timeout=conf.cloud.api_timeout,
        targets=targets,
        policy=_values(Policy, conf.prewarm),
        uploads=_values(Uploads, conf.uploads),
        reclaiming=reclaiming,
        switched_off=frozenset(
            name
            for name, on in {
                "upload": conf.uploads.enabled,
                "reclaim": conf.reclaim.enabled,
            }.items()
            if not on
        ),
        resync_interval=conf.resync.interval,
        resync_on_start=conf.resync.on_start,
        bind=bind,
        page=conf.probes.page,
        config_files=tuple(conf.config_file or ()),
        config_dirs=tuple(conf.config_dir or ()),
    )


def _values(kind: type[T], group: Any, **known: Any) -> T:
    """Return a value of this kind whose fields are the group's options of the same names, besides
    what is known."""
    found = {}
    for one in fields(kind):  # type: ignore[arg-type]
        if one.name in group and one.name not in known:
            value = group[one.name]
            kept = tuple if str(one.type).startswith("tuple") else frozenset
            found[one.name] = kept(value) if isinstance(value, list) else value
    return kind(**known, **found)


def _reclaiming(conf: cfg.ConfigOpts, faults: list[str]) -> Reclaiming:
    text = _get(conf, RECLAIM, "max_at_once").strip()
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
        enabled=_get(conf, RECLAIM, "enabled"),
        dry_run=_get(conf, RECLAIM, "dry_run"),
        grace=_get(conf, RECLAIM, "grace"),
        max_at_once=at_once,
        max_share=share,
    )


def _target_faults(targets: Sequence[Target]) -> Iterator[str]:
    """Two targets that are one and the same place: each would take the other's Image-Volumes for
    its own."""
    for option in ("volume_type", "glance_store"):
        values = [getattr(target, option) for target in targets if getattr(target, option)]
        for value in dict.fromkeys(value for value in values if values.count(value) > 1):
            names = ", ".join(target.name for target in targets if getattr(target, option) == value)
            yield f"[prewarm] targets: {names} have the same {option} {value}"


def _project_faults(conf: cfg.ConfigOpts) -> Iterator[str]:
    for name in ("projects", "exclude_projects"):
        for project in _get(conf, PREWARM, name):
            if not PROJECT_ID.fullmatch(project):
                yield (
                    f"[prewarm] {name}: {project!r} is no project's id (32 hexadecimal digits; "
                    f"its name won't do)"
                )


def _unreadable(conf: cfg.ConfigOpts) -> Iterator[str]:
    """Options whose values are not of their type."""
    for group, options in OPTIONS.items():
        for option in options:
            try:
                conf[group.name][option.dest]
            except (cfg.Error, ValueError) as error:
                # The rest of oslo.config's text is about its own insides
                yield f"[{group.name}] {option.name}: {str(error).rpartition('is not valid: ')[2]}"


def _endless(conf: cfg.ConfigOpts) -> Iterator[str]:
    """Seconds that are no number, or more than any socket or broker takes; `nan` is neither below
    nor above a bound."""
    for group, options in OPTIONS.items():
        for option in options:
            if isinstance(option, cfg.FloatOpt) and not _get(conf, group, option.dest) <= LONGEST:
                yield (
                    f"[{group.name}] {option.name}: {_get(conf, group, option.dest)} is not up "
                    f"to {LONGEST:.0f}"
                )


def _get(conf: cfg.ConfigOpts, group: cfg.OptGroup, name: str) -> Any:
    """An option's value; its default where the value can't be read, so that the other faults are
    found all the same."""
    try:
        return conf[group.name][name]
    except (cfg.Error, ValueError):
        return next(option.default for option in OPTIONS[group] if option.dest == name)


def _split_urls(items: Sequence[str]) -> Iterator[str]:
    """URLs, put together again where the list was split at a comma inside one that names several
    hosts."""
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
        if _get(conf, NOTIFICATIONS, "driver") == "rabbit":
            yield from _broker_faults("[notifications] transport_urls", url)
        elif not urlsplit(url).scheme:
            yield "[notifications] transport_urls: not an oslo.messaging URL"
    for url in _split_urls(_get(conf, NOTIFICATIONS, "management_urls")):
        try:
            parts = urlsplit(url)
            good = (
                parts.scheme in {"http", "https"}
                and parts.hostname
                and (parts.port is None or parts.port > 0)
            )
        except ValueError:
            good = False
        if not good:
            yield (
                "[notifications] management_urls: expected http(s)://user:password@host:port, "
                "percent-encoded"
            )
    work_url = _get(conf, WORK, "url")
    if work_url != "memory://":
        yield from _broker_faults("[work] url", work_url)


def _broker_faults(name: str, url: str) -> Iterator[str]:
    try:
        parse(url)
    except Misconfigured as error:
        yield from (f"{name}: {fault}" for fault in error.faults)


def _targets(conf: cfg.ConfigOpts, faults: list[str]) -> Iterator[Target]:
    """The targets that are named, each with its own group; a group without a name is a fault as
    well."""
    names = [name for name in _get(conf, PREWARM, "targets") if name]
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
            pools = tuple(pool for pool in conf[group].pools if pool != "auto")
            target = _values(
                Target,
                conf[group],
                name=name,
                volume_type=conf[group].volume_type or "",
                pools=pools,
            )
        except (cfg.Error, ValueError) as error:
            faults.append(f"[{group}]: {error}")
            continue
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
    """Groups and options of the files that mean nothing: most likely slips of the pen, which nobody
    would notice."""
    known = {group.name: options for group, options in OPTIONS.items()}
    known |= {f"target:{name}": TARGET_OPTIONS for name in _get(conf, PREWARM, "targets")}
    # oslo.config tells what is in its files no other way
    parsed = [] if conf._namespace is None else conf._namespace._parsed
    for section, given in ((section, given) for file in parsed for section, given in file.items()):
        if section.startswith("oslo_") or section == "keystone_authtoken":
            # Of libraries and services that share the file; with driver = oslo, oslo.messaging
            # reads its own
            continue
        if section not in known:
            if not given:
                # A title without anything under it, as the sample has them
                continue
            named = section.startswith("target:")
            yield (
                f"[{section}] is not named in [prewarm] targets"
                if named
                else f"[{section}]: there is no such group"
            )
            continue
        names = {name for option in known[section] for name in (option.name, option.dest)}
        yield from (
            f"[{section}] {name}: there is no such option" for name in given if name not in names
        )


def _bind(text: str, faults: list[str]) -> tuple[str, int] | None:
    address = address_of(text) if text else None
    if text and address is None:
        faults.append(
            f"[probes] bind: {text[:100]!r} is not HOST:PORT, with an address of IPv6 as "
            f"[ADDRESS]:PORT"
        )
    return address


def config_dirs(given: Sequence[str], files: Sequence[str]) -> list[str]:
    """The folders to read: those given, else the one beside each of the files that is named like
    it, with a `.d`."""
    return list(given) or [folder for file in files if os.path.isdir(folder := f"{file}.d")]


def unreadable(files: Sequence[str], folders: Sequence[str]) -> Iterator[str]:
    """Return faults that oslo.config would pass over or not name: missing folders, files that are
    no text."""
    for folder in folders:
        if not os.path.isdir(folder):
            yield f"--config-dir {folder}: there is no such folder"
    for path in (
        *files,
        *(
            path
            for folder in folders
            for path in sorted(glob.glob(f"{glob.escape(folder)}/*.conf"))
        ),
    ):
        try:
            with open(path, encoding="utf-8") as file:
                file.read()
        except UnicodeDecodeError as error:
            yield f"{path} is no text in UTF-8: {error}"
        except OSError:
            # oslo.config names it
            continue


def config_files(given: Sequence[str]) -> list[str]:
    """The files to read: those given, else /etc/image-volume-worker/image-volume-worker.conf if it
    is there."""
    default = "/etc/image-volume-worker/image-volume-worker.conf"
    return list(given) or ([default] if os.path.exists(default) else [])
