"""Volume status: what Cinder's status of a volume lets one do with it. Pure."""

from __future__ import annotations

from worker.core.cloud import Volume

# Seconds after which a volume that Cinder is still making counts as lost
STALLED_AFTER = 21_600.0
# A scheduler takes seconds. A RabbitMQ that restarts forgets what Cinder's API has told the
# scheduler
UNSCHEDULED_AFTER = 300.0
# Cinder's DELETE refuses every other status (cinder/volume/api.py, delete), error_deleting too
DELETABLE = frozenset(
    {"available", "error", "error_restoring", "error_extending", "error_managing"}
)
# Glance that reads a volume attaches it, and one that is killed leaves it so for ever: its data is
# whole, and Cinder clones it all the same
ATTACHED = frozenset({"in-use", "reserved", "attaching", "detaching"})
USABLE = ATTACHED | {"available"}
MAKING = frozenset({"creating", "downloading"})


def is_usable(volume: Volume) -> bool:
    """Whether Cinder can clone it now, by a location or as an entry of its cache."""
    return volume.status in USABLE


def is_broken(volume: Volume) -> bool:
    """Whether it will never serve."""
    return volume.status.startswith("error")


def is_stalled(volume: Volume, now: float) -> bool:
    """Whether Cinder will never make it any more."""
    patience = STALLED_AFTER if volume.scheduled else UNSCHEDULED_AFTER
    return volume.status in MAKING and now - volume.created_epoch > patience


def may_be_deleted(volume: Volume, now: float) -> bool:
    """Whether Cinder deletes it; not while a host is making it, while it is attached, or in
    error_deleting."""
    lost = is_stalled(volume, now) and not volume.scheduled
    return lost or volume.status in DELETABLE


def is_leaving(volume: Volume) -> bool:
    """Whether it is on its way out, or stuck on it: nothing is to be made of it any more."""
    return volume.status == "deleting" or is_stuck(volume)


def is_stuck(volume: Volume) -> bool:
    """Whether Cinder refuses to delete it before an administrator has acted, as in
    error_deleting."""
    return is_broken(volume) and volume.status not in DELETABLE


def needs_administrator(volume: Volume) -> bool:
    """Whether it is in an error that may leave its data whole, or that nobody can end: all but
    plain `error`."""
    return is_broken(volume) and volume.status != "error"


def stuck_advice(volume: Volume, *, located: bool) -> str:
    """The command with which an administrator helps a volume that Cinder does not let go of.

    `located`: it is, or may be, a location of its image, and must not be deleted on our word.
    """
    if located:
        command = f"openstack volume set --state available {volume.id}"
        return (
            f"volume {volume.id} is {volume.status}; if its data is whole: {command}, else "
            f"see docs/upkeep.md"
        )
    if is_stuck(volume):
        command = f"openstack volume delete --force {volume.id}"
    else:
        command = f"openstack volume set --state error --detached {volume.id}"
    return f"Cinder keeps it {volume.status}; to have it deleted: {command}"
