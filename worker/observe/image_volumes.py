"""Image-Volumes by image, as the last listing showed them, in little memory."""

from __future__ import annotations

import struct
import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from worker.core.cloud import Volume
from worker.core.target import TAG

MOST = 200_000
"""Volumes that are kept: about 20 MiB."""
WORDS = 60_000
"""Names of targets, pools and statuses that are kept; the numbers of two bytes have room for them."""
_PACKED = struct.Struct("<16sIddHHH")


class KeptVolume(NamedTuple):
    """An Image-Volume. `size` in GiB, `created` and `used` in epoch seconds, 0 if not known."""

    id: str
    size: int
    created: float
    used: float
    target: str
    pool: str
    status: str


class ImageVolumes:
    """The Image-Volumes of each image. Filled once, and only read from then on.

    `used_of` returns the last use that is written on a volume, in epoch seconds.
    """

    def __init__(self, *, used_of: Callable[[Volume], float] = lambda _: 0.0) -> None:
        self._used_of = used_of
        self._packed: dict[str, bytes] = {}
        self._words = [""]
        self._numbers = {"": 0}
        self._left = MOST
        self.counts: Counter[str] = Counter()
        self.at = time.time()

    def add(self, image_id: str, volume: Volume) -> None:
        """Keep one volume; only count it if there are too many, or if its id is no UUID."""
        target = volume.metadata.get(TAG, "")
        self.counts[target] += 1
        try:
            raw = uuid.UUID(volume.id).bytes
        except ValueError:
            return
        if self._left <= 0:
            return
        self._left -= 1
        words = (self._number(word) for word in (target, volume.host, volume.status))
        size = min(max(volume.size, 0), 0xFFFF_FFFF)
        packed = _PACKED.pack(raw, size, volume.created_epoch, self._used_of(volume), *words)
        self._packed[image_id] = self._packed.get(image_id, b"") + packed

    def of(self, image_id: str) -> list[KeptVolume]:
        """Return the Image-Volumes of an image, in the order of the listing."""
        packed = self._packed.get(image_id, b"")
        return [
            KeptVolume(
                str(uuid.UUID(bytes=raw)), size, created, used, *map(self._words.__getitem__, words)
            )
            for raw, size, created, used, *words in _PACKED.iter_unpack(packed)
        ]

    def _number(self, word: str) -> int:
        """Return the number of a word, 0 ("") for one too many."""
        if word not in self._numbers and len(self._words) < WORDS:
            self._numbers[word] = len(self._words)
            self._words.append(word)
        return self._numbers.get(word, 0)
