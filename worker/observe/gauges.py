"""Gauges: samples are set first and stale ones removed after, so that no scrape misses any."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Gauge


def labels_of(gauge: Gauge) -> set[tuple[str, ...]]:
    """Return the labels of each series of a gauge."""
    return {
        tuple(sample.labels.values()) for family in gauge.collect() for sample in family.samples
    }


def remove(gauge: Gauge, labels: Iterable[tuple[str, ...]]) -> None:
    """Remove the samples with these labels."""
    for values in labels:
        gauge.remove(*values)


def renew(gauge: Gauge, values: Iterable[tuple[tuple[str, ...], float]]) -> None:
    """Set each series of a gauge, then remove the others: a scrape may come at any moment, and
    must not find none."""
    current = set()
    for labels, value in values:
        gauge.labels(*labels).set(value)
        current.add(labels)
    remove(gauge, labels_of(gauge) - current)
