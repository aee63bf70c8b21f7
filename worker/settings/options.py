"""The options: ONE table, with each one's default, unit, bounds, help and place in `Settings`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from oslo_config import cfg, types

from worker.core.target import Policy, Reclaiming, Target, Uploads
from worker.engine.retry import Backoff
from worker.engine.runner import Limits

SECONDS = "seconds"
LONGEST_EXPIRY = 4_294_967
"""Seconds: RabbitMQ takes 32 bits of milliseconds."""
PARTS: dict[str, Any] = {
    "limits": Limits(),
    "backoff": Backoff(),
    "policy": Policy(),
    "uploads": Uploads(),
    "reclaiming": Reclaiming(),
    "target": Target(name="", volume_type=""),
}
"""Values that `Settings` consists of. Their fields' defaults are the options' defaults."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a group.

    Its value becomes `field` of `Settings`, or of one of its PARTS; with "" `parse` reads it by
    hand. An option of a part has that field's default, unless a `default` is given. `least` and
    `most` bound a number in its `unit`. `secret`: it may hold a password.
    """

    group: str
    name: str
    _: KW_ONLY
    field: str
    help: str
    default: Any = None
    required: bool = False
    unit: str = ""
    least: Any = None
    most: Any = None
    choices: Sequence[str] = ()
    secret: bool = False
    sample: str | None = None

    @property
    def part(self) -> str:
        """The part of `Settings` that has the value; "" for `Settings` itself."""
        return self.field.rpartition(".")[0]

    @property
    def attribute(self) -> str:
        """The name of the value's field there."""
        return self.field.rpartition(".")[2]

    @property
    def initial(self) -> Any:
        """The value if nobody sets it; None for a required option."""
        if self.default is not None or self.required:
            return self.default
        return getattr(PARTS[self.part], self.attribute)

    def value(self, given: Any) -> Any:
        """Return a value that oslo.config has read as `Settings` has it: lists become tuples or
        frozensets."""
        return type(self.initial)(given) if isinstance(given, list) else given

    def to_oslo(self) -> cfg.Opt:
        """Return the option as oslo.config knows it."""
        initial = self.initial
        common: dict[str, Any] = {
            "default": initial,
            "help": self.help,
            "secret": self.secret,
            "sample_default": self.sample,
        }
        match initial:
            case bool():
                return cfg.BoolOpt(self.name, **common)
            case int():
                return cfg.IntOpt(self.name, **common, min=self.least, max=self.most)
            case float():
                return cfg.FloatOpt(self.name, **common, min=self.least, max=self.most)
            case tuple() | frozenset():
                # A set has no order: that of its choices, which are all it can hold
                ordered = initial if isinstance(initial, tuple) else self._ordered(initial)
                item = types.String(choices=list(self.choices) or None)
                common["default"] = list(ordered)
                return cfg.ListOpt(self.name, **common, item_type=item)
            case _:
                return cfg.StrOpt(self.name, **common, choices=list(self.choices) or None)

    def _ordered(self, initial: frozenset[str]) -> Iterable[str]:
        return [one for one in self.choices if one in initial] if self.choices else sorted(initial)


TITLES = {
    "notifications": "Where notifications come from",
    "work": "Where jobs wait, and how often they are tried",
    "cloud": "The cloud and our login",
    "prewarm": "Which images are kept warm, and where",
    "uploads": "Making images of volumes without copying them",
    "reclaim": "Deleting what nobody needs any more",
    "resync": "The bulk comparison that heals what notifications have missed",
    "probes": "Metrics and health over HTTP",
    "log": "Logs",
}

# One option, one row: with each argument on a line of its own it would be six hundred lines
# fmt: off
TABLE: tuple[Option, ...] = (
    Option("notifications", "transport_urls", field="", default=(), secret=True,
           sample="rabbit://openstack:PASSWORD@rabbit-1:5672/",
           help="Brokers that Glance and Cinder publish to, as oslo.messaging URLs, split by spaces or "
                "semicolons if they hold several hosts (which commas separate). Often one for each service, "
                "since vhosts differ."),
    Option("notifications", "exchanges", field="exchanges", default=("glance", "openstack", "cinder"),
           help="control_exchange of the services."),
    Option("notifications", "topics", field="topics", default=("notifications",),
           help="Topics of [oslo_messaging_notifications]."),
    Option("notifications", "priorities", field="priorities", default=("info", "error"),
           help="Priorities to hear of."),
    Option("notifications", "queue", field="queue", default="image-volume-worker",
           help="Our own queue; replicas share it."),
    Option("notifications", "queue_type", field="queue_type", default="quorum", choices=("quorum", "classic"),
           help="Type of our queue; classic (durable) for a broker without quorum queues."),
    Option("notifications", "queue_max_length", field="queue_max_length", default=100_000, unit="notifications",
           least=1000,
           help="Notifications kept while no worker runs; the oldest are dropped, resync finds what they "
                "meant."),
    Option("notifications", "queue_expires", field="queue_expires", default=86_400, unit=SECONDS, least=60,
           most=LONGEST_EXPIRY,
           help="Seconds without a worker after which the broker removes our queue."),
    Option("notifications", "prefetch", field="prefetch", default=500, unit="notifications", least=1, most=10_000,
           help="Notifications taken from the broker at once."),
    Option("notifications", "driver", field="driver", default="rabbit", choices=("rabbit", "oslo"),
           help="rabbit: our own consumer; oslo: oslo.messaging's listener, for transports that are not "
                "RabbitMQ. It takes the options of [oslo_messaging_*] from the same files (TLS, SASL, quorum "
                "queues), as a service does; rabbit takes TLS from the URL, and none of these. The two make "
                "queues of different kinds: change queue with it."),
    Option("notifications", "management_urls", field="", default=(), secret=True,
           sample="http://monitor:PASSWORD@rabbit-1:15672",
           help="RabbitMQ's management API, for doctor alone, which finds policies and alarms by it; one of "
                "each cluster, in any order, also of that in [work] url. http:// or "
                "https://user:password@host:port; the user needs the tag management, better monitoring and "
                "policymaker, and read rights on the vhosts."),
    Option("work", "url", field="work_url", default="memory://", secret=True,
           help="Where jobs wait: memory:// (one process; resync at start finds them again) or "
                "amqp://user:password@host:port/vhost (RabbitMQ; several replicas). A vhost of its own: some "
                "distributions let the messages of the services' vhosts expire after 70 s."),
    Option("work", "max_attempts", field="limits.max_attempts", unit="tries", least=1,
           help="Failed tries after which a job becomes a dead letter."),
    Option("work", "backoff_min", field="backoff.shortest", unit=SECONDS, least=0.1,
           help="Seconds before the first retry of a job."),
    Option("work", "backoff_max", field="backoff.longest", unit=SECONDS, least=1.0,
           help="Seconds between retries at the most."),
    Option("work", "job_timeout", field="limits.job", unit=SECONDS, least=1.0,
           help="Seconds that one try of a job may take."),
    Option("work", "hold_limit", field="limits.hold", unit=SECONDS, least=10.0, most=1200.0,
           help="Seconds that a job is held while a volume is made, before it goes back into its lane; a "
                "third of that while it waits for a slot. RabbitMQ closes a channel that holds a delivery for "
                "30 minutes."),
    Option("work", "drain_timeout", field="limits.drain", unit=SECONDS, least=0.0,
           help="Seconds for jobs in progress to end after SIGTERM."),
    Option("work", "park_retry_after", field="limits.park_retry_after", unit=SECONDS, least=0.0,
           help="Seconds that resync leaves a dead letter alone."),
    Option("cloud", "name", field="cloud_name", default="",
           help="Entry of clouds.yaml; else OS_CLOUD, else the OS_* variables. The project that the "
                "credentials are scoped to owns the Image-Volumes: it must be Cinder's internal tenant and "
                "the project of Glance's cinder stores. Roles: admin (or see admin_role) and service."),
    Option("cloud", "admin_role", field="admin_role", default="admin",
           help="Role of the login that makes Glance and Cinder show what belongs to other projects. Another "
                "one than admin only together with the policy files of config/policy."),
    Option("cloud", "api_concurrency", field="api_concurrency", default=16, unit="requests", least=1, most=256,
           help="Requests under way at once."),
    Option("cloud", "api_timeout", field="api_timeout", default=30.0, unit=SECONDS, least=1.0,
           help="Seconds that one request may take in all, with the token it needs."),
    Option("cloud", "poll_min", field="limits.poll_min", unit=SECONDS, least=0.1,
           help="Seconds between the first polls of what is being made."),
    Option("cloud", "poll_max", field="limits.poll_max", unit=SECONDS, least=0.5,
           help="Seconds between polls at the most; notifications wake us."),
    Option("prewarm", "targets", field="", default=(),
           help="Names of the targets; each has a group [target:NAME]."),
    Option("prewarm", "visibilities", field="policy.visibilities", choices=("public", "community", "shared",
           "private"),
           help="Visibilities of images that are kept warm."),
    Option("prewarm", "projects", field="policy.projects",
           help="Ids of the projects whose images are kept warm; empty for all."),
    Option("prewarm", "exclude_projects", field="policy.exclude_projects",
           help="Ids of projects whose images are not."),
    Option("prewarm", "min_size", field="policy.min_size", unit="bytes", least=0,
           help="Smallest image, in bytes."),
    Option("prewarm", "max_size", field="policy.max_size", unit="bytes", least=0,
           help="Largest image, in bytes; 0 for any. Where Cinder makes the volume (strategies location and "
                "cache), min_disk and virtual_size count too: they decide how much is allocated."),
    Option("prewarm", "property", field="policy.property",
           help="Image property with the owner's no, or yes in spite of visibilities and min_size: yes on a "
                "public image, yes/<image id> on any. A plain yes on another image may be inherited, and does "
                "not count."),
    Option("prewarm", "settle", field="policy.settle", unit=SECONDS, least=0.0,
           help="Seconds an image must have been left alone before Cinder's cache entry of it is made anew."),
    Option("prewarm", "rewarm_interval", field="policy.rewarm_interval", unit=SECONDS, least=0.0,
           help="Seconds between two of these at least, from the second one on, for an image that is changed "
                "all day."),
    Option("prewarm", "when", field="policy.when", choices=("new", "used"),
           help="new: at once; used: when a second volume was made of the image on the target, by whomever. "
                "For clouds with thousands of images of which few are booted."),
    Option("uploads", "enabled", field="", default=True,
           help="Complete uploads: Cinder's own, and those asked for by property."),
    Option("uploads", "source_property", field="uploads.source_property",
           help="Property of a queued raw/bare image with the id of the volume that it is to be made of."),
    Option("uploads", "status_property", field="uploads.status_property",
           help="Property that tells the owner of such an image what is in the way; empty for none."),
    Option("uploads", "grace", field="uploads.grace", unit=SECONDS, least=5.0,
           help="Seconds that an upload of Cinder's own must have been still before it counts as stuck."),
    Option("uploads", "allow_in_use", field="uploads.allow_in_use",
           help="Clone attached volumes too. What their guest has not written out is missing in the image."),
    Option("uploads", "location_api", field="uploads.location_api", choices=("auto", "new", "old"),
           help="new: POST /v2/images/{id}/locations, of Glance 2.17 and newer, role service; old: PATCH, "
                "which needs show_multiple_locations (OSSN-0065, OSSN-0090); auto: new where Glance has it."),
    Option("uploads", "reserved_image_namespaces", field="uploads.reserved_image_namespaces",
           help="Beginnings of names: no such property of the image that a volume was made from is given to "
                "the image made of the volume. As Cinder's option of this name, and everything that Glance's "
                "property protections keep from users: the worker may set it, and users can write anything "
                "into their volumes' image metadata."),
    Option("reclaim", "enabled", field="reclaiming.enabled",
           help="Delete the Image-Volumes of deleted images, and those that we made of images that are not "
                "wanted any more or for which a target's budget has no room. Else a target with a full budget "
                "takes nothing more."),
    Option("reclaim", "dry_run", field="reclaiming.dry_run",
           help="Only say in the log what would be deleted."),
    Option("reclaim", "grace", field="reclaiming.grace", unit=SECONDS, least=0.0,
           help="Seconds for which Glance must have answered that an image is not there, at five looks spread "
                "over them, before the image counts as deleted although its deletion was not heard of. Where "
                "Glance deletes with a delay (delayed_delete), set it above the delay (scrub_time)."),
    Option("reclaim", "max_at_once", field="", default=f"{Reclaiming().max_share:.0%}",
           help="The brake. If more Image-Volumes than this belong to images that are not found, though no "
                "deletion was heard of, none of them is deleted before an operator says `reclaim --confirm`: "
                "Glance may have lost its database. A share of all Image-Volumes, at least 5, or a number."),
    Option("resync", "interval", field="resync_interval", default=3600.0, unit=SECONDS, least=10.0,
           help="Seconds between two comparisons."),
    Option("resync", "on_start", field="resync_on_start", default=True,
           help="Compare at start too. Needed with memory://."),
    Option("probes", "bind", field="", default="127.0.0.1:9417",
           help="HOST:PORT of /metrics, /healthz, /readyz, [::]:PORT for all of IPv6 and IPv4; empty for "
                "none."),
    Option("probes", "page", field="page", default=True,
           help="Serve a page for people at / there too, and what `status` asks. It shows ids of images, "
                "names of public ones, and reasons of failures to everybody who gets there; nothing can be "
                "changed by it."),
    Option("log", "level", field="", default="info", choices=("debug", "info", "warning", "error"),
           help="Least level shown."),
    Option("log", "format", field="", default="auto", choices=("auto", "json", "text", "journal"),
           help="auto: text on a terminal, else json. journal: entries of systemd's journal, each field one "
                "of its own (journalctl EVENT=job_parked)."),
    Option("target", "volume_type", field="target.volume_type", required=True,
           help="Name of a volume type. Required."),
    Option("target", "strategy", field="target.strategy", choices=("auto", "store", "location", "cache", "native"),
           help="How an image is made warm there. store: Glance copies it into its cinder store on that "
                "backend; cache: Cinder fills its image-volume cache, with images of any format; location: we "
                "make a volume and add it as a location (needs show_multiple_locations, which tells every "
                "reader of an image where its data lies: OSSN-0090); native: Cinder's driver clones the image "
                "from one of native_stores; auto: nothing for what Cinder clones by itself, store for raw "
                "images where Glance has one, else cache."),
    Option("target", "glance_store", field="target.glance_store",
           help="Glance's cinder store on that backend; found by the volume type if empty."),
    Option("target", "native_stores", field="target.native_stores",
           help="Stores of Glance from which Cinder's driver clones raw images by itself: rbd stores on the "
                "same Ceph cluster, say. A raw image that is in none of them is copied into the first. Found "
                "out for rbd if empty, by one volume a day that is deleted at once."),
    Option("target", "pools", field="target.pools", default=("auto",),
           help="Pools to keep images warm in, by names or wildcards, host@backend#pool; auto: all that the "
                "volume type leads to. Where they are several, each gets an entry of Cinder's image-volume "
                "cache, by a private volume type for each that the worker makes."),
    Option("target", "exclude_pools", field="target.exclude_pools",
           help="Pools to leave out, by names or wildcards."),
    Option("target", "availability_zone", field="target.availability_zone",
           help="Availability zone of volumes we make; Cinder's default if empty."),
    Option("target", "max_concurrent", field="target.max_concurrent", unit="Image-Volumes", least=1, most=1000,
           help="Image-Volumes made at once."),
    Option("target", "max_gigabytes", field="target.max_gigabytes", unit="GiB", least=0,
           help="GiB that the Image-Volumes we put there may have together, as they are allocated; 0 for no "
                "limit. When they are used up, the least recently used one makes room for an image that is "
                "newer or was used since."),
    Option("target", "max_count", field="target.max_count", unit="Image-Volumes", least=0,
           help="How many Image-Volumes we may put there; 0 for no limit."),
    Option("target", "disk_formats", field="target.disk_formats", choices=("raw", "qcow2", "vmdk", "vdi", "vhd",
           "vhdx", "iso", "ploop"),
           help="Formats kept warm. If empty: raw, and with strategy auto or cache also qcow2, vmdk, vdi, "
                "vhd, vhdx and ploop, which Cinder's image-volume cache keeps converted."),
)
# fmt: on

GROUPS = {name: cfg.OptGroup(name, title=title) for name, title in TITLES.items()}
OPTIONS: dict[cfg.OptGroup, list[cfg.Opt]] = {
    group: [option.to_oslo() for option in TABLE if option.group == name]
    for name, group in GROUPS.items()
}
TARGET_OPTIONS: list[cfg.Opt] = [option.to_oslo() for option in TABLE if option.group == "target"]


def register(conf: cfg.ConfigOpts) -> None:
    """Make the options known, but not those of targets: these need the names first."""
    for group, options in OPTIONS.items():
        conf.register_group(group)
        conf.register_opts(options, group=group)


def list_opts() -> list[tuple[cfg.OptGroup, list[cfg.Opt]]]:
    """Return all options, for oslo-config-generator."""
    return [*OPTIONS.items(), (cfg.OptGroup("target:NAME", title="One target"), TARGET_OPTIONS)]
