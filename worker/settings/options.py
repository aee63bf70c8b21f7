"""The options: ONE table, with each one's default, unit, bounds, help and place in `Settings`."""

from __future__ import annotations

from typing import Any

from oslo_config import cfg

from worker.core.target import Reclaiming
from worker.settings.option import SECONDS, Option

LONGEST_EXPIRY = 4_294_967
"""Seconds: RabbitMQ takes 32 bits of milliseconds."""


SHARED_GROUP = "DEFAULT"
"""The group that services which share a file have in common: oslo.config has it by no name."""

TITLES = {
    SHARED_GROUP: "Logs, by the options that every OpenStack service has",
    "notifications": "Where notifications come from",
    "work": "Where jobs wait, and how often they are tried",
    "cloud": "The cloud and our login",
    "prewarm": "Which images are kept warm, and where",
    "uploads": "Making images of volumes without copying them",
    "reclaim": "Deleting what nobody needs any more",
    "resync": "The bulk comparison that heals what notifications have missed",
    "probes": "Metrics and health over HTTP",
    "log": "Logs",
    "tracing": "OpenTelemetry traces",
}

# One option, one row: with each argument on a line of its own it would be six hundred lines
# fmt: off
TABLE: tuple[Option, ...] = (
    Option("DEFAULT", "debug", field="", default=False,
           help="Log at level debug, whatever [log] level says."),
    Option("DEFAULT", "log_file", field="", default="",
           help="File to log to instead of standard error. The worker opens it again when logrotate has moved it."),
    Option("DEFAULT", "log_dir", field="", default="",
           help="Folder of log_file, if that is no absolute path. Without log_file the file is "
                "image-volume-worker.log."),
    Option("DEFAULT", "use_journal", field="", default=False,
           help="Log to systemd's journal: the same as [log] format = journal."),
    Option("notifications", "transport_urls", field="", default=(), secret=True,
           sample="rabbit://openstack:PASSWORD@rabbit-1:5672/",
           help="Brokers that Glance and Cinder publish to, as oslo.messaging URLs. Separate URLs by spaces "
                "or semicolons if one of them names several hosts, which are separated by commas. Often each "
                "service needs its own URL, because their vhosts differ."),
    Option("notifications", "exchanges", field="exchanges", default=("glance", "openstack", "cinder"),
           help="Exchanges of the services, as in their option control_exchange."),
    Option("notifications", "topics", field="topics", default=("notifications",),
           help="Topics, as in [oslo_messaging_notifications] of the services."),
    Option("notifications", "priorities", field="priorities", default=("info", "error"),
           help="Priorities of the notifications to receive."),
    Option("notifications", "queue", field="queue", default="image-volume-worker",
           help="Name of the worker's own queue; replicas share it. The names of the lanes' queues begin with "
                "it too."),
    Option("notifications", "queue_type", field="queue_type", default="quorum", choices=("quorum", "classic"),
           help="Type of the worker's queue. Use classic (durable) if the broker has no quorum queues."),
    Option("notifications", "queue_max_length", field="queue_max_length", default=100_000, unit="notifications",
           least=1000,
           help="Number of notifications that the queue keeps while no worker runs. The broker drops the "
                "oldest; a resync finds what they meant."),
    Option("notifications", "queue_expires", field="queue_expires", default=86_400, unit=SECONDS, least=60,
           most=LONGEST_EXPIRY,
           help="Seconds without a worker after which the broker removes the queue."),
    Option("notifications", "prefetch", field="prefetch", default=500, unit="notifications", least=1, most=10_000,
           help="Number of notifications that the worker takes from the broker at once."),
    Option("notifications", "driver", field="driver", default="rabbit", choices=("rabbit", "oslo"),
           help="rabbit: the worker's own consumer, which takes TLS from the URL. oslo: oslo.messaging's "
                "listener, for transports other than RabbitMQ; it takes the options of [oslo_messaging_*] "
                "(TLS, SASL, quorum queues) from the same files, as a service does. The two create different "
                "kinds of queues, so change the option queue together with this one."),
    Option("notifications", "management_urls", field="", default=(), secret=True,
           sample="http://monitor:PASSWORD@rabbit-1:15672",
           help="URLs of RabbitMQ's management API, http:// or https://user:password@host:port. Only doctor "
                "uses them, to find policies and alarms. Give one URL per cluster, in any order, including "
                "the cluster of [work] url. The user needs the tag management (monitoring and policymaker "
                "show more) and read rights on the vhosts."),
    Option("work", "url", field="work_url", default="memory://", secret=True,
           help="Where jobs wait. memory://: in the process, for a single worker; the resync at start finds "
                "lost jobs again. amqp://user:password@host:port/vhost: on RabbitMQ, for several replicas. "
                "Use a separate vhost, because some distributions let messages on the services' vhosts expire "
                "after 70 s."),
    Option("work", "max_attempts", field="limits.max_attempts", unit="tries", least=1,
           help="Number of failed tries after which a job becomes a dead letter."),
    Option("work", "backoff_min", field="backoff.shortest", unit=SECONDS, least=0.1,
           help="Seconds before the first retry of a job."),
    Option("work", "backoff_max", field="backoff.longest", unit=SECONDS, least=1.0,
           help="Maximum seconds between two tries of a job."),
    Option("work", "job_timeout", field="limits.job", unit=SECONDS, least=1.0,
           help="Maximum seconds for one try of a job."),
    Option("work", "hold_limit", field="limits.hold", unit=SECONDS, least=10.0, most=1200.0,
           help="Seconds for which the worker holds a job while a volume is being created, before the job "
                "goes back into its lane; a third of that while the job waits for a slot. RabbitMQ closes a "
                "channel that holds a delivery for 30 minutes."),
    Option("work", "drain_timeout", field="limits.drain", unit=SECONDS, least=0.0,
           help="Seconds that jobs in progress may take to end after SIGTERM."),
    Option("work", "park_retry_after", field="limits.park_retry_after", unit=SECONDS, least=0.0,
           help="Seconds after which a resync tries a dead letter again."),
    Option("cloud", "name", field="cloud_name", default="",
           help="Entry of clouds.yaml. If empty, OS_CLOUD, and without it the OS_* variables. The project of "
                "this login owns the Image-Volumes. It must be Cinder's internal tenant and the project of "
                "Glance's cinder stores. Roles: admin (or see admin_role) and service."),
    Option("cloud", "admin_role", field="admin_role", default="admin",
           help="Role of the login that lets it see images and volumes of other projects. Use a role other "
                "than admin only together with the policy files of config/policy."),
    Option("cloud", "api_concurrency", field="api_concurrency", default=16, unit="requests", least=1, most=256,
           help="Maximum number of simultaneous requests."),
    Option("cloud", "api_timeout", field="api_timeout", default=30.0, unit=SECONDS, least=1.0,
           help="Maximum seconds for one request, including the request for a token."),
    Option("cloud", "poll_min", field="limits.poll_min", unit=SECONDS, least=0.1,
           help="Seconds between the first polls of something that is being created."),
    Option("cloud", "poll_max", field="limits.poll_max", unit=SECONDS, least=0.5,
           help="Maximum seconds between two polls. A notification leads to an earlier one."),
    Option("prewarm", "targets", field="", default=(),
           help="Names of the targets. Each one has a group [target:NAME]."),
    Option("prewarm", "visibilities", field="policy.visibilities", choices=("public", "community", "shared",
           "private"),
           help="Visibilities of images to keep warm."),
    Option("prewarm", "projects", field="policy.projects",
           help="Ids of the projects whose images to keep warm; empty for all."),
    Option("prewarm", "exclude_projects", field="policy.exclude_projects",
           help="Ids of projects whose images not to keep warm."),
    Option("prewarm", "min_size", field="policy.min_size", unit="bytes", least=0,
           help="Minimum size of an image, in bytes."),
    Option("prewarm", "max_size", field="policy.max_size", unit="bytes", least=0,
           help="Maximum size of an image, in bytes; 0 for no maximum. With strategies location and cache, "
                "min_disk and virtual_size count too, because they decide the size of the volume that Cinder "
                "creates."),
    Option("prewarm", "property", field="policy.property",
           help="Image property by which the owner opts out (no), or opts in despite visibilities and "
                "min_size: yes on a public image, yes/<image id> on any image. A plain yes on another image "
                "may be inherited, so it does not count."),
    Option("prewarm", "settle", field="policy.settle", unit=SECONDS, least=0.0,
           help="Seconds for which an image must be unchanged before the worker makes Cinder's cache entry of "
                "it again."),
    Option("prewarm", "rewarm_interval", field="policy.rewarm_interval", unit=SECONDS, least=0.0,
           help="Minimum seconds between making the same Image-Volume twice, from the second time on. Limits "
                "the work for images that change all day."),
    Option("prewarm", "when", field="policy.when", choices=("new", "used"),
           help="When to make an image warm. new: at once. used: when anybody creates the second volume from "
                "the image on the target; for clouds with thousands of images, few of them in use."),
    Option("uploads", "enabled", field="", default=True,
           help="Complete uploads: Cinder's own ones that got stuck, and those that an image property asks "
                "for."),
    Option("uploads", "source_property", field="uploads.source_property",
           help="Property of a queued raw/bare image that names the volume to make the image from."),
    Option("uploads", "status_property", field="uploads.status_property",
           help="Property that tells the owner of such an image why it is still queued; empty for none."),
    Option("uploads", "grace", field="uploads.grace", unit=SECONDS, least=5.0,
           help="Seconds without a change after which an upload of Cinder counts as stuck."),
    Option("uploads", "allow_in_use", field="uploads.allow_in_use",
           help="Also clone attached volumes. The image lacks data that the guest has not written to the "
                "volume yet."),
    Option("uploads", "location_api", field="uploads.location_api", choices=("auto", "new", "old"),
           help="API by which Glance gets the location. new: POST /v2/images/{id}/locations, with Glance 2.17 "
                "and newer and the role service. old: PATCH, which needs show_multiple_locations (OSSN-0065, "
                "OSSN-0090). auto: new if Glance has it."),
    Option("uploads", "project_gigabytes", field="uploads.project_gigabytes", unit="GiB", least=0,
           help="Maximum GiB of all images that one project may have made of its volumes; 0 for no limit. Glance's "
                "own limit image_size_total does not hold up an image that gets its data by a location. An upload "
                "beyond it waits until the project deletes such images."),
    Option("uploads", "reserved_image_namespaces", field="uploads.reserved_image_namespaces",
           help="Beginnings of names of image properties that the worker does not copy from a volume to its "
                "image. Use the values of Cinder's option of the same name, and everything that Glance's "
                "property protections deny to users: the worker may set these properties, and users can write "
                "anything into the image metadata of their volumes."),
    Option("reclaim", "enabled", field="reclaiming.enabled",
           help="Delete the Image-Volumes of deleted images, and those that prewarm made and that are no "
                "longer wanted or do not fit into a target's budget. If false, a target with a full budget "
                "gets no new images."),
    Option("reclaim", "dry_run", field="reclaiming.dry_run",
           help="Delete nothing that anybody may want, and log what would be deleted. Throw-away volumes "
                "of Cinder's cache go, and clones for uploads whose owners have changed their minds."),
    Option("reclaim", "grace", field="reclaiming.grace", unit=SECONDS, least=0.0,
           help="Seconds over which Glance must answer five times that an image does not exist, before an "
                "image whose deletion was not announced counts as deleted. If Glance uses delayed_delete, set "
                "this above its scrub_time."),
    Option("reclaim", "max_at_once", field="", default=f"{Reclaiming().max_share:.0%}",
           help="The brake: if more Image-Volumes than this belong to missing images whose deletion was not "
                "announced, the worker deletes none of them until an operator runs `reclaim --confirm`, "
                "because Glance may have lost its database. A share of all Image-Volumes (at least 5), or a "
                "number."),
    Option("resync", "interval", field="resync_interval", default=3600.0, unit=SECONDS, least=10.0,
           help="Seconds between two resyncs. More than two days is too long (or twice [reclaim] grace, if that is "
                "longer): no image then counts as deleted unless Glance announced it."),
    Option("resync", "on_start", field="resync_on_start", default=True,
           help="Also run a resync at start. Needed with memory://."),
    Option("probes", "bind", field="", default="127.0.0.1:9417",
           help="HOST:PORT of /metrics, /healthz and /readyz. [::]:PORT is all of IPv6 and IPv4; empty for "
                "none."),
    Option("probes", "page", field="page", default=True,
           help="Also serve a page for people at /, and the data for `status`. The page shows ids of images, "
                "names of public images and reasons of failures to everybody who can reach it. Nobody can "
                "change anything with it."),
    Option("log", "level", field="", default="info", choices=("debug", "info", "warning", "error"),
           help="Lowest level to log."),
    Option("log", "format", field="", default="auto", choices=("auto", "json", "text", "journal"),
           help="auto: text on a terminal, otherwise json. journal: entries of systemd's journal, with each "
                "field as a field of the journal (journalctl EVENT=job_parked)."),
    Option("tracing", "otlp_endpoint", field="otlp_endpoint", default="", sample="http://127.0.0.1:4318",
           help="URL of a collector that takes OpenTelemetry traces over HTTP: spans of notifications, their jobs "
                "and the requests of these. Empty for none. Needs the extra otel: pip install "
                "'image-volume-worker[otel]'. The standard variables OTEL_EXPORTER_OTLP_* and "
                "OTEL_RESOURCE_ATTRIBUTES count too."),
    Option("tracing", "sample_ratio", field="trace_ratio", default=1.0, unit="share of traces", least=0.0, most=1.0,
           help="Share of the traces to send."),
    Option("target", "volume_type", field="target.volume_type", required=True,
           help="Name of a volume type. Required."),
    Option("target", "strategy", field="target.strategy", choices=("auto", "store", "location", "cache", "native"),
           help="How images become warm on this target. store: Glance copies the image into its cinder store "
                "on that backend. cache: Cinder fills its image-volume cache, with images of any format. "
                "location: the worker creates a volume and adds it to the image as a location; needs "
                "show_multiple_locations, which shows every reader of an image where its data is (OSSN-0090). "
                "native: Cinder's driver clones the image from one of native_stores. auto: nothing if Cinder "
                "clones the image by itself, store for raw images if Glance has such a store, otherwise "
                "cache."),
    Option("target", "glance_store", field="target.glance_store",
           help="Glance's cinder store on that backend. If empty, the worker finds it by the volume type."),
    Option("target", "native_stores", field="target.native_stores",
           help="Stores of Glance from which Cinder's driver clones raw images by itself, for example rbd "
                "stores on the same Ceph cluster. The worker copies a raw image that is in none of them into "
                "the first one. If empty, the worker finds out for rbd stores by one volume a day, which it "
                "deletes at once."),
    Option("target", "pools", field="target.pools", default=("auto",),
           help="Pools to keep images warm in, as names or wildcards of host@backend#pool. auto: all pools "
                "that the volume type leads to. If there are several, the worker makes an entry of Cinder's "
                "image-volume cache in each, by a private volume type for each pool."),
    Option("target", "exclude_pools", field="target.exclude_pools",
           help="Pools to leave out, as names or wildcards."),
    Option("target", "volume_types", field="target.volume_types",
           help="Other volume types that are served by what is kept warm on this target: volumes of them count "
                "as uses of their images here. Types that lead to the same pools are found without this, if the "
                "login may see pools, extra specs and encryption."),
    Option("target", "availability_zone", field="target.availability_zone",
           help="Availability zone of the volumes that the worker creates; if empty, Cinder's default."),
    Option("target", "max_concurrent", field="target.max_concurrent", unit="Image-Volumes", least=1, most=1000,
           help="Number of Image-Volumes to make at once."),
    Option("target", "max_gigabytes", field="target.max_gigabytes", unit="GiB", least=0,
           help="Maximum allocated GiB of all Image-Volumes that prewarm makes on this target; 0 for no "
                "limit. When it is reached, the worker evicts the least recently used one for an image that "
                "is newer or was used since."),
    Option("target", "max_count", field="target.max_count", unit="Image-Volumes", least=0,
           help="Maximum number of Image-Volumes that prewarm makes on this target; 0 for no limit."),
    Option("target", "project_share", field="target.project_share", unit="share of the budget", least=0.0, most=1.0,
           help="Beyond this share of a full budget, a project's private, shared and community images evict only "
                "images of that project, so that one project cannot evict everybody's. 1 for no such limit."),
    Option("target", "disk_formats", field="target.disk_formats", choices=("raw", "qcow2", "vmdk", "vdi", "vhd",
           "vhdx", "iso", "ploop"),
           help="Formats of images to keep warm. If empty: raw, and with strategy auto or cache also qcow2, "
                "vmdk, vdi, vhd, vhdx and ploop, which Cinder's image-volume cache keeps converted."),
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
        if group.name == SHARED_GROUP:
            conf.register_opts(options)
            continue
        conf.register_group(group)
        conf.register_opts(options, group=group)


def read(conf: cfg.ConfigOpts, group: str, name: str) -> Any:
    """Return an option's value; an error of oslo.config if it can't be read."""
    return conf[name] if group == SHARED_GROUP else conf[group][name]


def list_opts() -> list[tuple[cfg.OptGroup | None, list[cfg.Opt]]]:
    """Return all options, for oslo-config-generator."""
    named = [
        (None if group.name == SHARED_GROUP else group, options)
        for group, options in OPTIONS.items()
    ]
    return [*named, (cfg.OptGroup("target:NAME", title="One target"), TARGET_OPTIONS)]
