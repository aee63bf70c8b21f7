"""Signs: what tells a clone of an image from a download, and the verdict. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from handlers import image_volume, volume_status
from handlers.upload import sources
from worker.core.cloud import GIB, Image, Volume
from worker.core.creation import NOTE
from worker.core.notification import Notification
from worker.diagnose.check import Check

NO_CLONE = "no clone"
"""A verdict about a download begins with this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """Observations of a volume being made: how it ended, how long it took, and what tells a
    download from a clone.

    `downloading` is that status, `sent` the bytes that Glance says it has sent, `verified` whether
    Cinder has noted what it notes of a download, `hit` whether its image-volume cache says that it
    served. `heard` tells whether Cinder announced the end, without which the last three are no
    news. Times in seconds.
    """

    volume: Volume
    seconds: float
    downloading: bool = False
    sent: int = 0
    verified: bool = False
    hit: bool = False
    heard: bool = False

    @property
    def is_clone(self) -> bool:
        """Whether it was made without a download."""
        return self.hit or not (self.downloading or self.sent or self.verified)


def judged(name: str, image: Image, signs: Signs, lying: tuple[Volume, ...] | None) -> Check:
    """Judge the signs. Pure."""
    volume = signs.volume
    if volume_status.is_broken(volume):
        advice = (
            "cinder-volume's log has the reason; a location whose volume is gone is one, see resync"
        )
        return Check(name, "fail", f"the volume is in status {volume.status}", advice)
    taken = f"in {signs.seconds:.1f} s"
    if signs.is_clone:
        how = "Cinder's image-volume cache has served it" if signs.hit else "nothing was downloaded"
        blind = "" if signs.heard else "; by status only, no notification came"
        return Check(name, "ok", f"a clone, {taken}: {how}{blind}")
    saw = [
        text
        for text, seen in (
            (f"Glance has sent {signs.sent / GIB:.2g} GiB", signs.sent),
            ("Cinder was downloading", signs.downloading),
            (f"Cinder has noted {NOTE}", signs.verified),
        )
        if seen
    ]
    return Check(
        name, "fail", f"{NO_CLONE}, {taken}: {', '.join(saw)}", _advice(image, volume, lying)
    )


def _advice(image: Image, volume: Volume, lying: tuple[Volume, ...] | None) -> str:
    if not image_volume.is_raw(image):
        return (
            f"Cinder converts {sources.kind_of(image)} each time, unless its image-volume "
            f"cache serves"
        )
    if lying is None:
        return "ask for it with: openstack image volume warm; the operator can tell more"
    usable = [one for one in lying if volume_status.is_usable(one)]
    if not usable:
        return "there is no Image-Volume here yet, see above"
    hosts = sorted({one.host for one in usable if one.host})
    if volume.host and hosts and volume.host not in hosts:
        return (
            f"it came to lie on {volume.host}, the Image-Volume on {', '.join(hosts)}: Cinder "
            f"clones in one pool only"
        )
    return (
        "no API tells: is allowed_direct_url_schemes = cinder set in cinder.conf there, and may "
        "Cinder read locations "
        "(role service)? cinder-volume's log at debug says why it did not clone"
    )


def with_message(signs: Signs, message: Mapping[str, Any], image: Image) -> Signs:
    """The signs, with what a notification says of them. Pure."""
    said = Notification.of(message)
    payload = message.get("payload")
    payload = payload if isinstance(payload, dict) else {}
    volume = signs.volume
    match said.event_type:
        case "image.send":
            # Others may be downloading the same image at this moment
            receiver = payload.get("receiver_tenant_id")
            ours = said.image_id == image.id and receiver in (None, "", volume.project_id)
            sent = payload.get("bytes_sent")
            return (
                replace(signs, sent=signs.sent + sent) if ours and isinstance(sent, int) else signs
            )
        case "image_volume_cache.hit":
            ours = said.image_id == image.id and said.host in ("", volume.host)
            return replace(signs, hit=True) if ours else signs
        case "volume.create.end" if said.volume_id == volume.id:
            return replace(signs, heard=True, verified=signs.verified or said.downloaded)
        case _:
            return signs
