"""Volumes that are packed come out as they went in, and take little."""

from __future__ import annotations

import tracemalloc
import uuid
from dataclasses import replace

from worker.core.cloud import Volume
from worker.engine.packed import Packed
from worker.testing.fake_cloud import FakeCloud
from worker.testing.rig import FAST, SLOW, STORES


def volumes(images: int) -> list[tuple[str, Volume]]:
    cloud = FakeCloud(stores=STORES)
    for _ in range(images):
        cloud.fill((FAST, SLOW))
    return [(volume.metadata["glance_image_id"], volume) for volume in cloud.volumes.values()]


def test_they_come_out_as_they_went_in() -> None:
    packed, put = Packed(), volumes(3)
    for image_id, volume in put:
        packed.add(image_id, volume)
    assert len(packed) == 3
    assert {image_id: set(map(repr, own)) for image_id, own in packed.items()} == {
        image_id: {repr(volume) for of, volume in put if of == image_id} for image_id, _ in put
    }
    first, one = put[0]
    assert one in packed[first]
    assert len(packed.take(first)) == 2
    assert packed.take(first) == ()
    assert first not in packed
    assert len(packed) == 2


def test_one_unlike_all_others() -> None:
    packed = Packed()
    (image_id, plain), *_ = volumes(1)
    odd = replace(
        plain,
        name="\ud800𝔘\x00" * 1000,
        size=1 << 40,
        encrypted=True,
        metadata={str(uuid.uuid4()): "x" * 255},
    )
    for volume in (plain, odd, replace(plain, metadata={})):
        packed.add(image_id, volume)
    assert packed[image_id] == (plain, odd, replace(plain, metadata={}))


def test_they_take_less_than_a_quarter() -> None:
    rows = volumes(500)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    packed = Packed()
    for image_id, volume in rows:
        packed.add(image_id, volume)
    packed_takes = tracemalloc.get_traced_memory()[0] - before
    whole = list(packed.values())
    whole_takes = tracemalloc.get_traced_memory()[0] - before - packed_takes
    tracemalloc.stop()
    assert len(whole) == 500
    assert packed_takes < whole_takes / 4
