"""Quotas: whether the internal project's quota has room for Image-Volumes. Pure."""

from __future__ import annotations

from worker.core.cloud import Quota


def too_large(quota: Quota, size: int) -> str:
    """Return why the quota allows no volume of `size` GiB; "" if it does. Pure."""
    if quota.per_volume is not None and quota.per_volume < size:
        return (
            f"the internal project's quota allows volumes of {quota.per_volume} GiB, {size} are "
            f"needed: raise per_volume_gigabytes"
        )
    return ""


def shortage(quota: Quota, gigabytes: int, volumes: int) -> str:
    """Return why the quota is not enough; "" if it is. Pure."""
    if quota.gigabytes is not None and quota.gigabytes < gigabytes:
        return (
            f"the internal project's quota has {quota.gigabytes} GiB left, {gigabytes} are "
            f"needed: raise gigabytes"
        )
    if quota.volumes is not None and quota.volumes < volumes:
        return (
            f"the internal project's quota has {quota.volumes} volumes left, {volumes} are "
            f"needed: raise volumes"
        )
    return ""
