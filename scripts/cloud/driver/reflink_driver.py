"""A small Cinder volume driver for one machine: volumes are sparse files on a file
system that can share extents (XFS, Btrfs), so a clone is one FICLONE.

A volume of pool P is the file <reflink_base>/P/volume-<id>. A backend's first pool has its name;
with reflink_pools = 3 the others are called <name>b and <name>c, all of them as large as the file
system. A connection is a loop device on this machine, handed out with os-brick's "local" protocol,
so that Cinder and Glance's cinder store read and write a real block device.
"""
# ruff: noqa: ARG002 - Cinder passes arguments that this driver has no use for.

import contextlib
import fcntl
import os
import string
from typing import Any

from cinder import coordination, exception, interface, utils
from cinder.image import image_utils
from cinder.volume import configuration, driver, volume_utils
from oslo_config import cfg
from oslo_utils import units

FICLONE = 0x40049409

OPTIONS = [
    cfg.StrOpt(
        "reflink_base",
        help="Directory, on a file system with reflinks, that holds one directory for each "
        "backend.",
    ),
    cfg.BoolOpt(
        "reflink_clone_across_pools",
        default=False,
        help="Report the capability clone_across_pools: backends under one reflink_base can "
        "clone each other.",
    ),
    cfg.IntOpt(
        "reflink_pools",
        default=1,
        min=1,
        max=26,
        help="Pools to report. A volume is cloned inside its pool only, unless "
        "reflink_clone_across_pools is set.",
    ),
    cfg.IntOpt(
        "reflink_clone_limit",
        default=0,
        min=0,
        help="Clones that one volume may have at a time, as on many arrays; 0 for no limit.",
    ),
]
# The extended attribute of a clone that names the file it was cloned from
SOURCE = "user.source"
cfg.CONF.register_opts(OPTIONS, group=configuration.SHARED_CONF_GROUP)


@interface.volumedriver
class ReflinkDriver(driver.VolumeDriver):
    VERSION = "1.0"
    CI_WIKI_NAME = "none"
    # It keeps nothing in memory
    SUPPORTS_ACTIVE_ACTIVE = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.configuration.append_config_values(OPTIONS)
        self.backend_name = self.configuration.safe_get("volume_backend_name")
        self.base: str = self.configuration.reflink_base

    @staticmethod
    def get_driver_options() -> list[cfg.Opt]:
        return OPTIONS

    # ---- files -----------------------------------------------------------

    def _directory(self, host: str) -> str:
        # "host@backend#pool": a clone may come from another backend than ours. The host of a
        # service has no pool.
        pool = volume_utils.extract_host(host, "pool")
        return os.path.join(
            self.base, pool or volume_utils.extract_host(host, "backend").split("@")[1]
        )

    @property
    def _pools(self) -> list[str]:
        letters = ["", *string.ascii_lowercase[1 : self.configuration.reflink_pools]]
        return [f"{self.backend_name}{letter}" for letter in letters]

    def _path(self, volume: Any) -> str:
        return os.path.join(self._directory(volume.host), f"volume-{volume.id}")

    def _snapshot_path(self, snapshot: Any) -> str:
        return os.path.join(self._directory(snapshot.volume.host), f"snapshot-{snapshot.id}")

    @staticmethod
    def _grow(path: str, gib: int) -> None:
        if os.path.getsize(path) < gib * units.Gi:
            os.truncate(path, gib * units.Gi)

    def _clone(self, source: str, target: str, gib: int = 0) -> None:
        for device in self._loops(source):  # in use: what was written so far
            utils.execute("blockdev", "--flushbufs", device, run_as_root=True)
        try:
            with open(source, "rb") as read, open(target, "wb") as write:
                fcntl.ioctl(write.fileno(), FICLONE, read.fileno())
            self._grow(target, gib)
        except OSError as error:
            self._remove(target)
            # One of Cinder's own, for only on those it falls back to a download.
            raise exception.VolumeBackendAPIException(
                data=f"cannot clone {source}: {error}"
            ) from error

    @staticmethod
    def _remove(path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    # ---- the backend -----------------------------------------------------

    def check_for_setup_error(self) -> None:
        for pool in self._pools:
            os.makedirs(os.path.join(self.base, pool), exist_ok=True)
        probe = os.path.join(self._directory(self.host), ".probe")
        try:
            with open(probe, "wb") as file:
                file.write(bytes(4096))
            self._clone(probe, f"{probe}-clone")
        finally:
            self._remove(probe)
            self._remove(f"{probe}-clone")

    def _update_volume_stats(self) -> None:
        space = os.statvfs(self.base)
        self._stats = {
            "volume_backend_name": self.backend_name,
            "vendor_name": "devcloud",
            "driver_version": self.VERSION,
            "storage_protocol": "local",
            "total_capacity_gb": space.f_blocks * space.f_frsize / units.Gi,
            "free_capacity_gb": space.f_bavail * space.f_frsize / units.Gi,
            "reserved_percentage": 0,
            "thin_provisioning_support": True,
            "thick_provisioning_support": False,
            "max_over_subscription_ratio": "100.0",
            "multiattach": True,
            "online_extend_support": True,
            "clone_across_pools": self.configuration.reflink_clone_across_pools,
        }
        if len(self._pools) > 1:
            self._stats["pools"] = [{**self._stats, "pool_name": pool} for pool in self._pools]

    # ---- volumes and snapshots -------------------------------------------

    def create_volume(self, volume: Any) -> None:
        with open(self._path(volume), "wb") as file:
            file.truncate(volume.size * units.Gi)

    def delete_volume(self, volume: Any) -> None:
        self._detach(self._path(volume))
        self._remove(self._path(volume))

    def create_cloned_volume(self, volume: Any, src_vref: Any) -> None:
        across = self.configuration.reflink_clone_across_pools
        if not across and self._directory(volume.host) != self._directory(src_vref.host):
            raise exception.VolumeBackendAPIException(
                data=f"cannot clone {src_vref.id} from {src_vref.host} to {volume.host}: another "
                f"pool"
            )
        self._clone_counted(volume, src_vref)

    @coordination.synchronized("reflink-clones-{source.id}")
    def _clone_counted(self, volume: Any, source: Any) -> None:
        path, limit = self._path(source), self.configuration.reflink_clone_limit
        if limit and self._clones_of(path) >= limit:
            raise exception.SnapshotLimitReached(set_limit=limit)
        self._clone(path, self._path(volume), volume.size)
        os.setxattr(self._path(volume), SOURCE, path.encode())

    def _clones_of(self, source: str) -> int:
        """The clones of a volume that are still there."""
        found = 0
        for pool in os.scandir(self.base):
            for file in os.scandir(pool) if pool.is_dir() else ():
                with contextlib.suppress(OSError):  # deleted meanwhile, or no clone
                    found += os.getxattr(file.path, SOURCE) == source.encode()
        return found

    def create_snapshot(self, snapshot: Any) -> None:
        self._clone(self._path(snapshot.volume), self._snapshot_path(snapshot))

    def delete_snapshot(self, snapshot: Any) -> None:
        self._remove(self._snapshot_path(snapshot))

    def create_volume_from_snapshot(self, volume: Any, snapshot: Any) -> None:
        self._clone(self._snapshot_path(snapshot), self._path(volume), volume.size)

    def extend_volume(self, volume: Any, new_size: int) -> None:
        path = self._path(volume)
        self._grow(path, int(new_size))
        for device in self._loops(path):
            utils.execute("losetup", "-c", device, run_as_root=True)

    # ---- images ----------------------------------------------------------

    def copy_image_to_volume(
        self,
        context: Any,
        volume: Any,
        image_service: Any,
        image_id: str,
        disable_sparse: bool = False,
    ) -> None:
        image_utils.fetch_to_raw(
            context,
            image_service,
            image_id,
            self._path(volume),
            self.configuration.volume_dd_blocksize,
            size=volume.size,
            disable_sparse=disable_sparse,
        )
        self._grow(self._path(volume), volume.size)

    def copy_volume_to_image(
        self, context: Any, volume: Any, image_service: Any, image_meta: dict[str, Any]
    ) -> None:
        volume_utils.upload_volume(context, image_service, image_meta, self._path(volume), volume)

    def clone_image(
        self,
        context: Any,
        volume: Any,
        image_location: Any,
        image_meta: dict[str, Any],
        image_service: Any,
    ) -> tuple[dict[str, Any], bool]:
        return {}, False  # Cinder's own way over the image's volume is what we are here to see

    # ---- connections -----------------------------------------------------

    @staticmethod
    def _loops(path: str) -> list[str]:
        if not os.path.exists(path):
            return []
        names: str = utils.execute(
            "losetup", "-l", "-n", "-O", "NAME", "-j", path, run_as_root=True
        )[0]
        return names.split()

    def _detach(self, path: str) -> None:
        for device in self._loops(path):
            utils.execute("losetup", "-d", device, run_as_root=True)

    @coordination.synchronized("reflink-{volume.id}")
    def initialize_connection(
        self, volume: Any, connector: dict[str, Any], **kwargs: Any
    ) -> dict[str, Any]:
        devices = self._loops(self._path(volume))
        if not devices:
            output: str = utils.execute(
                "losetup", "--find", "--show", self._path(volume), run_as_root=True
            )[0]
            devices = [output.strip()]
        return {"driver_volume_type": "local", "data": {"device_path": devices[0]}}

    @coordination.synchronized("reflink-{volume.id}")
    def terminate_connection(
        self, volume: Any, connector: dict[str, Any] | None, **kwargs: Any
    ) -> bool:
        others = len(volume.volume_attachment or []) > 1
        if connector is None or not others:  # without a connector: all of them
            self._detach(self._path(volume))
        return others

    def ensure_export(self, context: Any, volume: Any) -> None:
        pass

    def create_export(self, context: Any, volume: Any, connector: Any) -> None:
        pass

    def remove_export(self, context: Any, volume: Any) -> None:
        pass
