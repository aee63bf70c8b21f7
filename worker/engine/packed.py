"""Packed volumes, by image: millions of them in a fraction of the memory that their values would
take."""

from __future__ import annotations

import marshal
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from operator import attrgetter

from worker.core.cloud import Volume

FIELDS = tuple(field.name for field in fields(Volume))
_values = attrgetter(*FIELDS)
# Of zlib: raw, a window of a KiB (it is set up anew for each volume), little memory
_RAW, _MEMORY, _EFFORT = -10, 2, 6
_MARSHAL = 2
"""The last version that does not refer back by number: what is like another volume has to look like
it."""


class Packed(Mapping[str, tuple[Volume, ...]]):
    """The volumes of each image. Each look unpacks those of one image."""

    def __init__(self) -> None:
        self._packed: dict[str, list[bytes]] = {}
        # Volumes are much alike: the first one is zlib's dictionary for the others
        self._like = b""

    def add(self, image_id: str, volume: Volume) -> None:
        """Keep one volume."""
        raw = marshal.dumps(_values(volume), _MARSHAL)
        self._like = self._like or raw
        packer = zlib.compressobj(
            _EFFORT, zlib.DEFLATED, _RAW, _MEMORY, zlib.Z_DEFAULT_STRATEGY, self._like
        )
        self._packed.setdefault(image_id, []).append(packer.compress(raw) + packer.flush())

    def take(self, image_id: str) -> tuple[Volume, ...]:
        """Return the volumes of an image, and forget them."""
        return tuple(map(self._unpacked, self._packed.pop(image_id, ())))

    def __getitem__(self, image_id: str) -> tuple[Volume, ...]:
        return tuple(map(self._unpacked, self._packed[image_id]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    def _unpacked(self, packed: bytes) -> Volume:
        unpacker = zlib.decompressobj(_RAW, self._like)
        values = marshal.loads(unpacker.decompress(packed))
        return Volume(**dict(zip(FIELDS, values, strict=True)))
