"""Metrics, under names that dashboards and alerts rely on. No scrape ever calls the cloud."""

from __future__ import annotations

import collections
import time
from collections.abc import Iterable, Mapping
from functools import cache, partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from worker.core.cloud import Image
from worker.core.release import release
from worker.core.state import State
from worker.core.target import Target
from worker.observe.activity import Activity

PREFIX = "image_volume_worker"
OTHER = "other"
"""The target of Image-Volumes that are no target's, in the census."""
LABELS = {State.PARTLY_WARM.value: "partly_warm"}
"""The labels of states that have another word for it."""
ANNOUNCERS = {"image": "image", "volume": "block-storage"}
"""Whose notifications begin with what, by the names that requests have."""
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
API_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """All metrics of one process, in a registry of its own, and its activity."""

    def __init__(self) -> None:
        self.activity = Activity()
        self.registry = CollectorRegistry()
        r = self.registry

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", text, labels, registry=r)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"{PREFIX}_{name}", text, labels, registry=r)

        def seconds(
            name: str, text: str, *labels: str, buckets: tuple[float, ...] = SECONDS
        ) -> Histogram:
            return Histogram(f"{PREFIX}_{name}", text, labels, registry=r, buckets=buckets)

        # One metric, one row
        # fmt: off
        self.notifications = counter("notifications", "Notifications seen", "event_type", "outcome")
        last_notification = gauge(
            "last_notification_timestamp_seconds",
            "When a service was last heard of by a notification; until the first, the start", "service")
        self.notification_lag = seconds("notification_lag_seconds", "From a notification's timestamp to its routing")
        self.jobs = counter("jobs", "Settled tries of jobs", "handler", "target", "outcome")
        self.job_seconds = seconds("job_seconds", "Duration of one try of a job", "handler", "target")
        self.jobs_in_progress = gauge("jobs_in_progress", "Jobs being worked on", "lane")
        self.jobs_waiting = gauge("jobs_waiting", "Jobs that wait for another try", "lane")
        self.lane_depth = gauge("lane_depth", "Jobs that wait in a lane", "lane")
        self.lane_oldest = gauge(
            "lane_oldest_timestamp_seconds",
            "Since when the oldest job of a lane is asked for; 0 without one", "lane")
        self.images = gauge(
            "images", "Images by state on a target, as of the last resync and jobs since", "target", "state")
        self.pools = gauge(
            "pools", "Pools that a target leads to, by whether the worker can choose them", "target", "state")
        self.target_usable = gauge(
            "target_usable", "1 while the target's volume type is there and not encrypted", "target")
        self.target_paused = gauge("target_paused", "1 while an operator has paused the target", "target")
        self.ready = gauge("ready", "1 while every intake consumes, the lanes are open and the cloud is there")
        self.dead_letters = gauge("dead_letters", "Dead letters kept", "lane")
        self.image_volumes = gauge("image_volumes", "Image-Volumes, as last listed", "target", "state")
        self.image_volume_bytes = gauge("image_volume_bytes", "Size of the Image-Volumes, as last listed", "target")
        self.time_to_warm = seconds(
            "time_to_warm_seconds",
            "From the notification of an image to its Image-Volume being usable", "target")
        self.images_warmed = counter("images_warmed", "Image-Volumes made or made anew, and now usable", "target")
        self.uploads_completed = counter("uploads_completed", "Uploads that became active images", "path")
        self.volume_creates = counter(
            "volume_creates",
            "Volumes that users had made of an image, by how Cinder made them", "target", "path", "reason")
        self.volume_create = seconds(
            "volume_create_seconds", "What users wait for a volume of an image", "target", "warm")
        self.api_requests = counter(
            "api_requests", "Requests to Glance, Cinder, Keystone", "service", "method", "status")
        self.api_seconds = seconds(
            "api_request_seconds", "Duration of a request", "service", "method", buckets=API_SECONDS)
        self.api_retries = counter("api_retries", "Requests that were tried again", "service", "reason")
        self.rewarms = counter("rewarms", "Image-Volumes made anew, because changed or broken", "target", "reason")
        self.rewarms_held_back = counter("rewarms_held_back", "Changes too soon after the last re-warm", "target")
        self.beyond_repair = gauge("images_beyond_repair", "Images whose data cannot be had anywhere any more")
        self.reclaimed_volumes = counter("reclaimed_volumes", "Volumes deleted since nobody needs them", "reason")
        self.reclaim_held_back = gauge(
            "reclaim_held_back",
            "Volumes that the grace or the brake keeps, of images that Glance does not find")
        self.missing_volumes = gauge(
            "missing_volumes",
            "Volumes of locations that Cinder does not find and whose deletion it did not announce")
        self.reclaim_brake = gauge(
            "reclaim_brake",
            "1 while so many images, or volumes of locations, are not found that nothing is deleted")
        self.task_failures = counter("task_failures", "Failures of the process's own tasks, which begin again", "task")
        self.last_resync = gauge(
            "last_resync_timestamp_seconds",
            "When the last resync ended; until the first, the start")
        build_info = gauge("build_info", "What this is; always 1", "version")
        # fmt: on

        build_info.labels(release()).set(1)
        self.last_resync.set_to_current_time()
        self._heard = dict.fromkeys(ANNOUNCERS.values(), time.time())
        for service in self._heard:
            last_notification.labels(service).set_function(
                partial(self._heard.__getitem__, service)
            )
        # For each notification, and finding a child takes longer than counting with it
        self._notifications = cache(self.notifications.labels)
        self._brakes = frozenset[str]()
        self._lost: set[tuple[str, str]] = set()

    def begin(self, targets: Iterable[str], lanes: Iterable[str]) -> None:
        """Note that a daemon begins with these targets and lanes. The one before may have had
        others, and its observations are over."""
        targets = frozenset(targets)
        self.activity.forget(targets)
        self._lost.clear()
        self.beyond_repair.set(0)
        of_targets = (
            self.images,
            self.image_volumes,
            self.image_volume_bytes,
            self.target_usable,
            self.target_paused,
            self.pools,
        )
        of_lanes = (self.jobs_in_progress, self.jobs_waiting, self.lane_depth, self.lane_oldest)
        for gauges, kept in ((of_targets, {*targets, OTHER}), (of_lanes, {*lanes})):
            for gauge in gauges:
                _remove(gauge, [labels for labels in _labels_of(gauge) if labels[0] not in kept])
        for gauge in (self.jobs_in_progress, self.target_paused):
            for labels in _labels_of(gauge):
                gauge.labels(*labels).set(0)
        self.held_back(0, brake=False)
        self.missing(0, brake=False)

    def notification(self, event_type: str, outcome: str, *, known: bool = True) -> None:
        """Count one notification, as one of its event type if that is known, else as `other`."""
        self._notifications(event_type if known else "other", outcome).inc()
        if service := ANNOUNCERS.get(event_type.partition(".")[0]):
            self._heard[service] = time.time()

    def upload_completed(self, path: str) -> None:
        self.uploads_completed.labels(path).inc()

    def rewarm_began(self, target: str, reason: str) -> None:
        self.rewarms.labels(target, reason).inc()

    def rewarm_held_back(self, target: str) -> None:
        self.rewarms_held_back.labels(target).inc()

    def repair(self, image_id: str, target: str = "", *, possible: bool) -> None:
        if not possible:
            self._lost.add((image_id, target))
        elif self._lost:
            self._lost = {
                one for one in self._lost if one[0] != image_id or target not in ("", one[1])
            }
        self.beyond_repair.set(len({lost for lost, _ in self._lost}))

    def seen(self, image: Image, states: Mapping[str, tuple[State, str]]) -> None:
        self.activity.look(image, states)

    def held_back(self, volumes: int, *, brake: bool) -> None:
        self.reclaim_held_back.set(volumes)
        self._brake("images", brake)

    def targets(self, targets: Iterable[Target]) -> None:
        counts = collections.Counter(
            (
                target.name,
                "selectable" if len(target.places) == 1 or place.specs else "not_selectable",
            )
            for target in targets
            for place in target.places
        )
        _renew(self.pools, counts.items())

    def missing(self, volumes: int, *, brake: bool) -> None:
        self.missing_volumes.set(volumes)
        self._brake("volumes", brake)

    def _brake(self, of: str, holds: bool) -> None:
        self._brakes = self._brakes | {of} if holds else self._brakes - {of}
        self.reclaim_brake.set(bool(self._brakes))

    def reclaimed(self, reason: str) -> None:
        self.reclaimed_volumes.labels(reason).inc()

    def census(self, volumes: Mapping[tuple[str, str], int], sizes: Mapping[str, int]) -> None:
        """Take over the numbers of Image-Volumes by (target, status), and their bytes by target."""
        _renew(self.image_volumes, volumes.items())
        _renew(self.image_volume_bytes, (((target,), size) for target, size in sizes.items()))
        self.activity.weighed(sizes)
        # Another worker may have repaired or deleted it
        self._lost = {one for one in self._lost if self.activity.has(one[0])}
        self.beyond_repair.set(len({lost for lost, _ in self._lost}))

    def states(self) -> None:
        """Take over from the activity how many images are in each state."""
        states = self.activity.states()
        counted = (
            (target, state, n) for target, counts in states.items() for state, n in counts.items()
        )
        _renew(
            self.images, (((target, LABELS.get(state, state)), n) for target, state, n in counted)
        )

    def depths(self, depths: Mapping[str, int], waiting: Mapping[str, int]) -> None:
        """Take over how many jobs are in each lane (`dead` are the dead letters), and how many
        wait for another try."""
        oldest = self.activity.oldest()
        for lane, depth in depths.items():
            if lane == "dead":
                self.dead_letters.labels("all").set(depth)
                continue
            self.lane_depth.labels(lane).set(depth)
            self.jobs_waiting.labels(lane).set(waiting.get(lane, 0))
            self.lane_oldest.labels(lane).set(oldest.get(lane, 0.0))


def _labels_of(gauge: Gauge) -> set[tuple[str, ...]]:
    """Return the labels of each series of a gauge."""
    return {
        tuple(sample.labels.values()) for family in gauge.collect() for sample in family.samples
    }


def _remove(gauge: Gauge, labels: Iterable[tuple[str, ...]]) -> None:
    for values in labels:
        gauge.remove(*values)


def _renew(gauge: Gauge, values: Iterable[tuple[tuple[str, ...], float]]) -> None:
    """Set each series of a gauge, then remove the others: a scrape may come at any moment, and
    must not find none."""
    current = set()
    for labels, value in values:
        gauge.labels(*labels).set(value)
        current.add(labels)
    _remove(gauge, _labels_of(gauge) - current)
