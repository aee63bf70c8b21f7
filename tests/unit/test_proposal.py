"""`init`: the configuration that a cloud leads to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.configurations import load_text
from worker.core.cloud import Store
from worker.core.pool import Pool, VolumeType
from worker.diagnose.proposal import Seen, propose
from worker.settings import Settings


def volume_type(name: str, backend: str = "", *, public: bool = True) -> VolumeType:
    specs = {"volume_backend_name": backend} if backend else {}
    return VolumeType(id=name, name=name, specs=specs, public=public)


def pool(name: str, backend: str) -> Pool:
    return Pool(name=name, backend_name=backend, capabilities={"pool_name": name.partition("#")[2]})


SSD, HDD = pool("h@ssd#ssd", "ssd"), pool("h@hdd#hdd", "hdd")
LVM = Seen(
    login="user worker, project internal",
    cloud="internal",
    transport_urls=("rabbit://u:p$x@a:5672,u:p@b:5672/", "rabbit://u:p@c/cinder"),
    work_url="amqp://u:p@a/worker",
    exchanges=("glance", "openstack"),
    types=(volume_type("ssd", "ssd"), volume_type("hdd", "hdd")),
    encrypted={"ssd": False, "hdd": None},
    pools=(SSD, HDD),
    stores=(Store(id="file", type="file"), Store(id="fast", type="cinder", volume_type="ssd")),
)


def proposed(tmp_path: Path, seen: Seen) -> tuple[str, Settings]:
    text = propose(seen)
    assert all(len(line) <= 100 for line in text.splitlines() if line.startswith("#"))
    return text, load_text(tmp_path, text)


def test_it_is_what_was_seen(tmp_path: Path) -> None:
    text, settings = proposed(tmp_path, LVM)
    assert settings.transport_urls == LVM.transport_urls
    assert (settings.work_url, settings.cloud_name) == (LVM.work_url, "internal")
    # Glance may announce its first image later
    assert settings.exchanges == ("glance", "openstack", "cinder")
    assert "Exchanges that are there now: glance, openstack." in text
    assert text.count("CHECK that it is not encrypted") == 1
    assert [(one.name, one.volume_type) for one in settings.targets] == [
        ("ssd", "ssd"),
        ("hdd", "hdd"),
    ]
    assert "# Pools: h@ssd#ssd." in text
    assert "Raw images come by Glance's store fast" in text
    assert "Glance has no cinder store of this type" in text


def test_without_a_broker_it_says_where_to_look(tmp_path: Path) -> None:
    text, settings = proposed(
        tmp_path, replace(LVM, transport_urls=(), work_url="", exchanges=(), cloud="")
    )
    assert "take transport_url from" in text
    assert settings.work_url == "memory://"
    assert settings.cloud_name is None or settings.cloud_name == ""


def test_types_that_cannot_be_targets_are_named_with_the_reason(tmp_path: Path) -> None:
    types = (
        *LVM.types,
        volume_type("luks", "ssd"),
        volume_type("nowhere", "gone"),
        volume_type("silver", "ssd"),
        volume_type("__DEFAULT__"),
        volume_type("secret", "hdd", public=False),
    )
    text, settings = proposed(
        tmp_path, replace(LVM, types=types, encrypted={**LVM.encrypted, "luks": True})
    )
    assert [one.name for one in settings.targets] == ["ssd", "hdd"]
    flat = " ".join(text.replace("\n#", "").split())
    assert "Volume type luks is encrypted" in flat
    assert "Volume type nowhere leads to no pool" in flat
    assert "Volume type silver leads to pools of ssd" in flat
    assert "Volume type __DEFAULT__ leads to pools of hdd, ssd" in flat
    assert "secret" not in text


def test_several_pools(tmp_path: Path) -> None:
    other = pool("h@ssd#ssd2", "ssd")
    text, _ = proposed(tmp_path, replace(LVM, pools=(SSD, other, HDD)))
    assert "# Pools: h@ssd#ssd, h@ssd#ssd2." in text
    # Two hosts whose pools are called alike
    alike = [pool(f"{host}@ssd#pool", "ssd") for host in ("h1", "h2")]
    text, _ = proposed(tmp_path, replace(LVM, pools=(*alike, HDD)))
    assert "The worker cannot choose h1@ssd#pool, h2@ssd#pool" in " ".join(
        text.replace("\n#", "").split()
    )


@pytest.mark.parametrize(
    ("own", "store", "word"),
    [
        (frozenset({"two"}), "two", "Cinder has volumes of this one"),
        (frozenset(), "one", "CHECK"),
    ],
)
def test_several_stores_of_one_type(
    tmp_path: Path, own: frozenset[str], store: str, word: str
) -> None:
    stores = tuple(Store(id=name, type="cinder", volume_type="ssd") for name in ("one", "two"))
    text, settings = proposed(tmp_path, replace(LVM, stores=stores, own=own))
    assert settings.targets[0].glance_store == store
    assert word in text


def test_ceph_and_a_store_without_a_type(tmp_path: Path) -> None:
    text, _ = proposed(tmp_path, replace(LVM, stores=(Store(id="rbd", type="rbd"),)))
    assert "Glance has an rbd store (rbd)" in text
    text, _ = proposed(tmp_path, replace(LVM, stores=(Store(id="one", type="cinder"),)))
    assert "has no cinder_volume_type" in text


def test_a_login_that_sees_no_pools(tmp_path: Path) -> None:
    text, settings = proposed(tmp_path, replace(LVM, pools=None))
    assert "sees no pools" in text
    assert len(settings.targets) == 2


def test_names_that_no_target_may_have(tmp_path: Path) -> None:
    names = ("tier 1/ssd", "tier-1-ssd", "upload", "日本", "a$b", "x" * 200)
    pools = tuple(pool(f"h@b{number}#p", f"b{number}") for number in range(len(names)))
    types = tuple(volume_type(name, f"b{number}") for number, name in enumerate(names))
    _, settings = proposed(tmp_path, replace(LVM, types=types, pools=pools, encrypted={}))
    assert {one.volume_type for one in settings.targets} == set(names)
    assert {"tier-1-ssd", "tier-1-ssd-2", "upload-2"} <= {one.name for one in settings.targets}


def test_no_type_at_all() -> None:
    with pytest.raises(ValueError, match="no volume type can be a target: Cinder has none"):
        propose(replace(LVM, types=()))
