"""A worker without the role admin: config/policy gives its role what it needs, and nothing else to
anybody."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from scripts.cloud.operate import ROOT, groups, is_warm, of_image, switched, until
from scripts.cloud.people import HOME, Person
from tests.cloud.test_doctor import Doctor, doctor  # noqa: F401  a fixture
from tests.devcloud import has_new_location_api, release
from tests.worker_process import WorkerProcess

Images = Callable[..., str]
Worker = Callable[..., WorkerProcess]
PATCH = {"Content-Type": "application/openstack-images-v2.1-json-patch"}
DATA = {"Content-Type": "application/octet-stream"}
# The release whose defaults config/policy is made of; to another one the devcloud gives files made
# of its own
MADE_OF = "2026.2"
NOBODY = "00000000-0000-0000-0000-000000000000"


@pytest.fixture(scope="module", autouse=True)
def least_privilege(devcloud_up: None) -> Iterator[None]:
    with switched("LEAST_PRIVILEGE=1"):
        yield


@pytest.fixture(scope="module")
def login(least_privilege: None) -> Person:
    """The worker's login."""
    return Person("worker")


@pytest.fixture(scope="module")
def admin(least_privilege: None) -> Person:
    return Person("admin")


@dataclass(frozen=True, kw_only=True)
class Owned:
    """What alice has, and nobody else may touch."""

    alice: Person
    admin: Person
    image: str
    queued: str
    staged: str
    shared: str
    volume: str
    snapshot: str
    project: str
    bobs: str
    internal: str
    type: str

    def look(self) -> dict[str, Any]:
        """All of it as it is now, and what the administrator sees."""
        alice = [
            *(
                ("image", f"/images/{image}")
                for image in (self.image, self.queued, self.staged, self.shared)
            ),
            ("image", f"/images/{self.shared}/members"),
            *(("block_storage", f"/{what}/detail") for what in ("volumes", "snapshots")),
            *(("block_storage", f"/{what}") for what in ("os-volume-transfer", "attachments")),
        ]
        admin = [
            ("image", "/metadefs/namespaces"),
            ("block_storage", "/types?is_public=None"),
            ("block_storage", f"/os-quota-sets/{self.project}"),
            ("block_storage", "/group_types"),
            ("block_storage", "/qos-specs"),
        ]
        seen: dict[str, Any] = {}
        for person, (service, path) in itertools.chain(
            zip(itertools.repeat(self.alice), alice), zip(itertools.repeat(self.admin), admin)
        ):
            seen[path] = asked(person, service, "GET", path).json()
        return seen


@pytest.fixture(scope="module")
def owned(login: Person, alice: Person, bob: Person, admin: Person) -> Iterator[Owned]:
    image = alice.image("private", visibility="private")
    shared = alice.image("shared", visibility="shared")
    asked(alice, "image", "POST", f"/images/{shared}/members", {"member": bob.project_id})
    queued, staged = (new_image(alice) for _ in range(2))
    alice.connection.image.put(f"/images/{staged}/stage", data=b"staged", headers=DATA)
    volume = alice.volume(image, "local-1").id
    body = {"snapshot": {"volume_id": volume, "name": "snapshot"}}
    snapshot = asked(alice, "block_storage", "POST", "/snapshots", body).json()["snapshot"]["id"]
    settled(alice, f"/snapshots/{snapshot}", "snapshot")
    types = asked(alice, "block_storage", "GET", "/types").json()["volume_types"]
    yield Owned(
        alice=alice,
        admin=admin,
        image=image,
        queued=queued,
        staged=staged,
        shared=shared,
        volume=volume,
        snapshot=snapshot,
        project=alice.project_id,
        bobs=bob.project_id,
        internal=login.project_id,
        type=next(row["id"] for row in types if row["name"] == "local-2"),
    )
    asked(alice, "block_storage", "DELETE", f"/snapshots/{snapshot}")
    until(
        lambda: answer(alice, "block_storage", "GET", f"/snapshots/{snapshot}").status_code == 404
    )
    alice.delete_volume(volume)
    for image_id in (image, shared, queued, staged):
        alice.delete_image(image_id)


def answer(
    person: Person, service: str, method: str, path: str, body: Any = None, **more: Any
) -> Any:
    """What a service says."""
    proxy = getattr(person.connection, service)
    if service == "block_storage":
        more.setdefault("microversion", "3.70")
    if method == "PATCH":
        more.setdefault("headers", PATCH)
    return proxy.request(
        path, method, raise_exc=False, **({"json": body} if body is not None else {}), **more
    )


def asked(
    person: Person, service: str, method: str, path: str, body: Any = None, **more: Any
) -> Any:
    """The same, of a request that must succeed."""
    said = answer(person, service, method, path, body, **more)
    assert said.status_code < 300, f"{method} {path}: {said.status_code} {said.text[:300]}"
    return said


def new_image(person: Person) -> str:
    """A private image that waits for its data."""
    body = {
        "name": "queued",
        "disk_format": "raw",
        "container_format": "bare",
        "visibility": "private",
    }
    return str(asked(person, "image", "POST", "/images", body).json()["id"])


def new_volume(person: Person, **fields: Any) -> str:
    """A volume that is made."""
    body = {"volume": {"size": 1, "name": "made", "volume_type": "local-1"} | fields}
    made = asked(person, "block_storage", "POST", "/volumes", body).json()["volume"]["id"]
    assert settled(person, f"/volumes/{made}", "volume") == "available"
    return str(made)


def settled(person: Person, path: str, what: str) -> str:
    """The status that it comes to."""

    def status() -> str:
        return str(asked(person, "block_storage", "GET", path).json()[what]["status"])

    until(lambda: status() in ("available", "error"), what=f"{path} settles")
    return status()


def of_project(person: Person) -> set[str]:
    """The ids of the volumes of a project."""
    return {volume["id"] for volume in person.volumes()}


@pytest.mark.parametrize("service", ["glance", "cinder"])
def test_files_are_made_of_the_defaults(service: str) -> None:
    if release() != MADE_OF:
        pytest.skip(f"config/policy is made of the defaults of {MADE_OF}")
    (python,) = HOME.glob("venv-*/bin/python")
    command = [str(python), str(ROOT / "scripts" / "policy.py"), service]
    made = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert made.stdout == (ROOT / "config" / "policy" / f"{service}.yaml").read_text()


# ---- what the worker needs


def test_sees_images(login: Person, owned: Owned) -> None:
    for image_id in (owned.image, owned.queued, owned.shared):
        assert asked(login, "image", "GET", f"/images/{image_id}").json()["owner"] == owned.project
    for status, image_id in (("active", owned.image), ("queued", owned.queued)):
        rows = asked(
            login, "image", "GET", f"/images?visibility=all&status={status}&limit=1000"
        ).json()["images"]
        assert image_id in [row["id"] for row in rows]
    assert login.locations(owned.image)
    assert "tasks" in asked(login, "image", "GET", f"/images/{owned.image}/tasks").json()
    for path in ("/info/stores", "/info/stores/detail", "/info/import"):
        asked(login, "image", "GET", path)
    asked(login, "image", "GET", "/versions", endpoint_override="http://127.0.0.1:9292")


def test_copies_an_image_and_removes_the_copy(login: Person, owned: Owned) -> None:
    body = {
        "method": {"name": "copy-image"},
        "stores": ["cinder-2"],
        "all_stores_must_succeed": False,
    }
    asked(login, "image", "POST", f"/images/{owned.image}/import", body)
    until(lambda: owned.alice.show(owned.image)["stores"] == "file,cinder-2", what="copied")
    until(lambda: "os_glance_import_task" not in owned.alice.show(owned.image), what="unlocked")
    assert len(login.locations(owned.image)) == 2
    asked(login, "image", "DELETE", f"/stores/cinder-2/{owned.image}")
    assert owned.alice.show(owned.image)["stores"] == "file"


@pytest.mark.parametrize("which", ["image", "queued"])
def test_sets_a_property(login: Person, owned: Owned, which: str) -> None:
    image_id = getattr(owned, which)
    path = "/image_volume_status"
    asked(
        login,
        "image",
        "PATCH",
        f"/images/{image_id}",
        [{"op": "add", "path": path, "value": "waiting"}],
    )
    assert owned.alice.show(image_id)["image_volume_status"] == "waiting"
    asked(login, "image", "PATCH", f"/images/{image_id}", [{"op": "remove", "path": path}])
    assert "image_volume_status" not in owned.alice.show(image_id)


def test_clones_a_volume_and_makes_it_an_image(login: Person, alice: Person, owned: Owned) -> None:
    seen = asked(login, "block_storage", "GET", f"/volumes/{owned.volume}").json()["volume"]
    assert seen["os-vol-tenant-attr:tenant_id"] == owned.project
    assert seen["os-vol-host-attr:host"] == "cloudhost@local-1#local-1"
    clone = new_volume(login, source_volid=owned.volume)
    assert clone in of_project(login)
    asked(
        login,
        "block_storage",
        "POST",
        f"/volumes/{clone}/metadata",
        {"metadata": {"image_owner": owned.project}},
    )
    action = {"os-update_readonly_flag": {"readonly": True}}
    asked(login, "block_storage", "POST", f"/volumes/{clone}/action", action)
    image_id = new_image(alice)
    location = {"url": f"cinder://cinder-1/{clone}"}
    if has_new_location_api():
        asked(login, "image", "POST", f"/images/{image_id}/locations", location)
    else:
        change = [{"op": "add", "path": "/locations/-", "value": location | {"metadata": {}}}]
        asked(login, "image", "PATCH", f"/images/{image_id}", change)
    until(lambda: alice.show(image_id)["status"] == "active", what="active")
    # With do_secure_hash Glance still reads it
    until(lambda: "os_glance_import_task" not in alice.show(image_id), what="read")
    until(
        lambda: (
            asked(login, "block_storage", "GET", f"/volumes/{clone}").json()["volume"]["status"]
            == "available"
        )
    )
    alice.delete_image(image_id)
    until(lambda: clone not in of_project(login), what="Glance deletes the image's volume")


def test_makes_a_volume_of_a_private_image(login: Person, owned: Owned) -> None:
    made = new_volume(login, imageRef=owned.image, metadata={"image_volume_worker": "local-1"})
    login.delete_volume(made)


def test_reads_of_cinder(login: Person, owned: Owned) -> None:
    names = {f"page-{number}" for number in range(3)}
    made = [new_volume(login, name=name) for name in names]
    found = asked(login, "block_storage", "GET", "/volumes/detail?name=page-1").json()["volumes"]
    assert [volume["name"] for volume in found] == ["page-1"]
    listed = asked(login, "block_storage", "GET", "/volumes/detail?limit=2").json()["volumes"]
    rest = f"/volumes/detail?limit=99&marker={listed[-1]['id']}"
    listed += asked(login, "block_storage", "GET", rest).json()["volumes"]
    assert names <= {volume["name"] for volume in listed}
    assert owned.volume not in {volume["id"] for volume in listed}
    for volume_id in made:
        login.delete_volume(volume_id)
    types = asked(login, "block_storage", "GET", "/types?is_public=None").json()["volume_types"]
    assert {"local-1", "local-2"} <= {row["name"] for row in types}
    asked(login, "block_storage", "GET", "/limits")
    asked(login, "block_storage", "GET", f"/os-quota-sets/{login.project_id}?usage=True")


# ---- what it must not do


def patch(path: str, value: object) -> list[dict[str, object]]:
    """A change of an image."""
    return [{"op": "replace", "path": path, "value": value}]


DIRECT = {"method": {"name": "glance-direct"}}
FORBIDDEN_IMAGE = [
    ("DELETE", "/images/{image}", None),
    ("DELETE", "/images/{queued}", None),
    ("POST", "/images/{image}/actions/deactivate", None),
    ("POST", "/images/{image}/actions/reactivate", None),
    ("PATCH", "/images/{image}", patch("/visibility", "public")),
    ("PATCH", "/images/{image}", patch("/visibility", "community")),
    ("PUT", "/images/{queued}/file", b"data"),
    ("PATCH", "/images/{staged}", patch("/name", "changed")),
    ("POST", "/images/{staged}/import", DIRECT),
    ("POST", "/images", {"name": "own", "owner": "{project}"}),
    ("POST", "/images", {"name": "own"}),
    ("GET", "/images/{shared}/members", None),
    ("GET", "/images/{shared}/members/{bobs}", None),
    ("POST", "/images/{shared}/members", {"member": NOBODY}),
    ("PUT", "/images/{shared}/members/{bobs}", {"status": "accepted"}),
    ("DELETE", "/images/{shared}/members/{bobs}", None),
    ("GET", "/tasks", None),
    (
        "POST",
        "/tasks",
        {
            "type": "import",
            "input": {"import_from": "http://127.0.0.1/", "import_from_format": "raw"},
        },
    ),
    ("POST", "/metadefs/namespaces", {"namespace": "Forbidden"}),
    ("PUT", "/cache/{image}", None),
    ("GET", "/cache", None),
]
ACTIONS: list[dict[str, Any]] = [
    {"os-extend": {"new_size": 2}},
    {"os-attach": {"mountpoint": "/dev/vdb", "host_name": "elsewhere"}},
    {"os-detach": {}},
    {"os-force_detach": {"attachment_id": NOBODY}},
    {"os-reserve": {}},
    {"os-unreserve": {}},
    {"os-begin_detaching": {}},
    {"os-roll_detaching": {}},
    {"os-initialize_connection": {"connector": {"host": "elsewhere"}}},
    {"os-terminate_connection": {"connector": {"host": "elsewhere"}}},
    {"os-retype": {"new_type": "local-2", "migration_policy": "on-demand"}},
    {"os-force_delete": {}},
    {"os-reset_status": {"status": "error"}},
    {"os-update_readonly_flag": {"readonly": True}},
    {"os-set_bootable": {"bootable": False}},
    {"os-set_image_metadata": {"metadata": {"a": "b"}}},
    {"os-unset_image_metadata": {"key": "image_id"}},
    {"os-volume_upload_image": {"image_name": "stolen"}},
    {"os-migrate_volume": {"host": "cloudhost@local-2#local-2"}},
    {"os-unmanage": {}},
    {"os-reimage": {"image_id": "{image}"}},
    {"revert": {"snapshot_id": "{snapshot}"}},
]
FORBIDDEN_VOLUME: list[tuple[str, str, Any]] = [
    ("DELETE", "/volumes/{volume}", None),
    ("DELETE", "/volumes/{volume}?cascade=True", None),
    ("DELETE", "/volumes/{volume}?force=True", None),
    ("PUT", "/volumes/{volume}", {"volume": {"name": "changed"}}),
    ("GET", "/volumes/{volume}/metadata", None),
    ("POST", "/volumes/{volume}/metadata", {"metadata": {"a": "b"}}),
    ("PUT", "/volumes/{volume}/metadata", {"metadata": {"a": "b"}}),
    *(("POST", "/volumes/{volume}/action", action) for action in ACTIONS),
    ("GET", "/volumes/{volume}/encryption", None),
    ("POST", "/snapshots", {"snapshot": {"volume_id": "{volume}", "force": True}}),
    ("GET", "/snapshots/{snapshot}", None),
    ("PUT", "/snapshots/{snapshot}", {"snapshot": {"name": "changed"}}),
    ("DELETE", "/snapshots/{snapshot}", None),
    ("POST", "/snapshots/{snapshot}/metadata", {"metadata": {"a": "b"}}),
    ("POST", "/snapshots/{snapshot}/action", {"os-reset_status": {"status": "error"}}),
    ("POST", "/snapshots/{snapshot}/action", {"os-force_delete": {}}),
    ("POST", "/snapshots/{snapshot}/action", {"os-update_snapshot_status": {"status": "error"}}),
    ("POST", "/volumes", {"volume": {"size": 1, "snapshot_id": "{snapshot}"}}),
    ("POST", "/os-volume-transfer", {"transfer": {"volume_id": "{volume}"}}),
    ("POST", "/volume-transfers", {"transfer": {"volume_id": "{volume}"}}),
    ("POST", "/backups", {"backup": {"volume_id": "{volume}", "force": True}}),
    ("POST", "/attachments", {"attachment": {"volume_uuid": "{volume}", "instance_uuid": NOBODY}}),
    ("POST", "/types", {"volume_type": {"name": "forbidden"}}),
    ("PUT", "/types/{type}", {"volume_type": {"name": "changed"}}),
    ("DELETE", "/types/{type}", None),
    ("POST", "/types/{type}/extra_specs", {"extra_specs": {"a": "b"}}),
    ("POST", "/types/{type}/action", {"addProjectAccess": {"project": "{project}"}}),
    (
        "POST",
        "/types/{type}/encryption",
        {"encryption": {"provider": "luks", "control_location": "front-end"}},
    ),
    ("GET", "/os-quota-sets/{project}", None),
    ("PUT", "/os-quota-sets/{project}", {"quota_set": {"volumes": 1}}),
    ("DELETE", "/os-quota-sets/{project}", None),
    ("PUT", "/os-quota-class-sets/default", {"quota_class_set": {"volumes": 1}}),
    ("GET", "/default-types", None),
    ("PUT", "/default-types/{internal}", {"default_type": {"volume_type": "local-2"}}),
    ("GET", "/os-services", None),
    ("PUT", "/os-services/disable", {"host": "cloudhost@local-1", "binary": "cinder-volume"}),
    ("PUT", "/os-services/freeze", {"host": "cloudhost@local-1"}),
    ("PUT", "/os-services/failover", {"host": "cloudhost@local-1"}),
    ("POST", "/workers/cleanup", {}),
    ("GET", "/clusters", None),
    ("GET", "/os-hosts", None),
    ("GET", "/scheduler-stats/get_pools", None),
    ("GET", "/capabilities/cloudhost@local-1", None),
    ("GET", "/manageable_volumes?host=cloudhost@local-1", None),
    (
        "POST",
        "/manageable_volumes",
        {"volume": {"host": "cloudhost@local-1#local-1", "ref": {"source-name": "x"}}},
    ),
    ("POST", "/group_types", {"group_type": {"name": "forbidden"}}),
    ("GET", "/qos-specs", None),
    ("POST", "/qos-specs", {"qos_specs": {"name": "forbidden"}}),
]


def named(case: object) -> str:
    """A short name of a request's part."""
    if isinstance(case, dict):
        return next(iter(case), "empty")
    return case if isinstance(case, str) else ""


@pytest.mark.parametrize(
    ("service", "method", "path", "body"),
    [
        *(("image", *case) for case in FORBIDDEN_IMAGE),
        *(("block_storage", *case) for case in FORBIDDEN_VOLUME),
    ],
    ids=named,
)
def test_forbidden(
    login: Person, owned: Owned, service: str, method: str, path: str, body: Any
) -> None:
    before = owned.look()
    path = filled(path, owned)
    if isinstance(body, bytes):
        said = answer(login, service, method, path, data=body, headers=DATA)
    else:
        said = answer(login, service, method, path, filled(body, owned))
    assert said.status_code in (403, 404), said.text[:300]
    assert owned.look() == before


def filled(template: Any, owned: Owned) -> Any:
    """The same with alice's ids in it."""
    if isinstance(template, str):
        for name, value in vars(owned).items():
            template = template.replace(f"{{{name}}}", str(value))
        return template
    if isinstance(template, dict):
        return {key: filled(value, owned) for key, value in template.items()}
    return [filled(value, owned) for value in template] if isinstance(template, list) else template


def test_an_attachment_of_others_stays(login: Person, owned: Owned) -> None:
    volume = new_volume(owned.alice)
    body = {"attachment": {"volume_uuid": volume, "connector": {"host": "here"}}}
    made = asked(owned.alice, "block_storage", "POST", "/attachments", body).json()["attachment"][
        "id"
    ]
    for method, path, change in (
        ("PUT", f"/attachments/{made}", {"attachment": {"connector": {"host": "elsewhere"}}}),
        ("POST", f"/attachments/{made}/action", {"os-complete": {}}),
        ("DELETE", f"/attachments/{made}", None),
    ):
        assert answer(login, "block_storage", method, path, change).status_code in (403, 404), path
    asked(owned.alice, "block_storage", "DELETE", f"/attachments/{made}")
    owned.alice.delete_volume(volume)


def test_taking_an_image_over_gives_no_rights(
    login: Person, alice: Person, admin: Person, images: Images
) -> None:
    # Glance lets nobody forbid this one: who may change a property may change the owner, if
    # administrators' rows show
    image_id = images(visibility="private")
    asked(login, "image", "PATCH", f"/images/{image_id}", patch("/owner", login.project_id))
    try:
        assert answer(login, "image", "DELETE", f"/images/{image_id}").status_code == 403
        assert (
            answer(login, "image", "POST", f"/images/{image_id}/actions/deactivate").status_code
            == 403
        )
    finally:
        asked(admin, "image", "PATCH", f"/images/{image_id}", patch("/owner", alice.project_id))
    assert alice.show(image_id)["status"] == "active"


# ---- everybody else


def test_users_as_before(alice: Person, bob: Person, images: Images) -> None:
    image_id = images(visibility="private")
    alice.property(image_id, "anything", "changed")
    for visibility in ("community", "shared"):
        asked(alice, "image", "PATCH", f"/images/{image_id}", patch("/visibility", visibility))
    for verb in ("deactivate", "reactivate"):
        asked(alice, "image", "POST", f"/images/{image_id}/actions/{verb}")
    asked(alice, "image", "POST", f"/images/{image_id}/members", {"member": bob.project_id})
    asked(
        bob, "image", "PUT", f"/images/{image_id}/members/{bob.project_id}", {"status": "accepted"}
    )
    assert bob.show(image_id)["id"] == image_id
    assert bob.connection.image.get(f"/images/{image_id}/file").status_code == 200
    assert (
        answer(bob, "image", "PATCH", f"/images/{image_id}", patch("/name", "bob's")).status_code
        == 403
    )
    assert answer(bob, "image", "DELETE", f"/images/{image_id}").status_code == 403
    assert (
        answer(
            alice, "image", "PATCH", f"/images/{image_id}", patch("/visibility", "public")
        ).status_code
        == 403
    )
    staged = new_image(alice)
    asked(alice, "image", "PUT", f"/images/{staged}/stage", data=bytes(1 << 20), headers=DATA)
    asked(alice, "image", "PATCH", f"/images/{staged}", patch("/name", "changed"))
    asked(alice, "image", "POST", f"/images/{staged}/import", DIRECT)
    until(lambda: alice.show(staged)["status"] == "active", what="imported")
    alice.delete_image(staged)

    volume = new_volume(alice)
    changes: list[dict[str, Any]] = [
        {"os-extend": {"new_size": 2}},
        {"os-update_readonly_flag": {"readonly": True}},
    ]
    for change in changes:
        asked(alice, "block_storage", "POST", f"/volumes/{volume}/action", change)
        assert settled(alice, f"/volumes/{volume}", "volume") == "available"
    action = {
        "os-volume_upload_image": {
            "image_name": "uploaded",
            "disk_format": "raw",
            "visibility": "private",
        }
    }
    said = asked(alice, "block_storage", "POST", f"/volumes/{volume}/action", action).json()
    uploaded = said["os-volume_upload_image"]["image_id"]
    until(lambda: alice.show(uploaded)["status"] == "active", what="uploaded")
    assert settled(alice, f"/volumes/{volume}", "volume") == "available"
    for method, path in (
        ("GET", f"/volumes/{volume}"),
        ("DELETE", f"/volumes/{volume}"),
        ("GET", "/os-services"),
    ):
        assert answer(bob, "block_storage", method, path).status_code in (403, 404)
    alice.delete_image(uploaded)
    alice.delete_volume(volume)


def test_administrators_as_before(admin: Person, alice: Person, owned: Owned) -> None:
    image_id = alice.image("admin's", visibility="private")
    for visibility in ("public", "private"):
        asked(admin, "image", "PATCH", f"/images/{image_id}", patch("/visibility", visibility))
    for action in ("deactivate", "reactivate"):
        asked(admin, "image", "POST", f"/images/{image_id}/actions/{action}")
    asked(admin, "image", "GET", "/tasks")
    asked(admin, "image", "DELETE", f"/images/{image_id}")
    volume = new_volume(alice)
    changes: list[dict[str, Any]] = [
        {"os-reset_status": {"status": "error"}},
        {"os-force_delete": {}},
    ]
    for change in changes:
        asked(admin, "block_storage", "POST", f"/volumes/{volume}/action", change)
    until(lambda: volume not in of_project(alice), what="gone")
    seen = asked(admin, "block_storage", "GET", "/volumes/detail?all_tenants=1").json()["volumes"]
    assert owned.volume in [row["id"] for row in seen]
    for path in ("/os-services", "/scheduler-stats/get_pools", f"/os-quota-sets/{owned.project}"):
        asked(admin, "block_storage", "GET", path)
    made = asked(admin, "block_storage", "POST", "/types", {"volume_type": {"name": "new"}}).json()[
        "volume_type"
    ]["id"]
    asked(admin, "block_storage", "DELETE", f"/types/{made}")


# ---- the worker itself


def test_doctor_finds_nothing_wrong(doctor: Doctor, owned: Owned) -> None:  # noqa: F811
    report = doctor(
        {"cloud": {"name": "tried", "admin_role": "image_volume_worker"}}, login="worker"
    )
    assert report.of("fail") == {}
    report.says("roles", "ok", "image_volume_worker")
    report.says("rights in glance", "ok", "of other projects")
    report.says("rights to locations", "ok", "New Location API")
    report.says("rights in cinder", "ok", "volumes of other projects")


def test_worker(
    worker: Worker, images: Images, alice: Person, bob: Person, operator: Person
) -> None:
    settings = groups(cloud={"name": "worker", "admin_role": "image_volume_worker"})
    with worker(settings) as process:
        process.wait_ready()
        private, community = images(visibility="private"), images()
        for image_id in (private, community):
            until(lambda image_id=image_id: is_warm(operator, alice, image_id), what="warm")  # type: ignore[misc]
        with alice.temporary_volume(private, "local-1") as made:
            assert made.cloned
        with bob.temporary_volume(community, "local-2") as made:
            assert made.cloned
        alice.delete_image(private)
        until(lambda: not of_image(operator, private), what="gone")


def test_worker_completes_an_upload(
    worker: Worker, login: Person, alice: Person, bob: Person
) -> None:
    ours, theirs, image_id = new_volume(alice), new_volume(bob), new_image(alice)
    alice.act(ours, "os-set_image_metadata", metadata={"hw_firmware_type": "uefi"})
    with worker(groups(cloud={"name": "worker", "admin_role": "image_volume_worker"})) as process:
        process.wait_ready()
        alice.property(image_id, "image_volume_source", theirs)
        until(lambda: "image_volume_status" in alice.show(image_id), what="refused")
        assert alice.show(image_id)["status"] == "queued"
        alice.property(image_id, "image_volume_source", ours)
        until(lambda: alice.show(image_id)["status"] == "active", what="active")
        assert alice.show(image_id)["hw_firmware_type"] == "uefi"
        until(lambda: is_warm(login, alice, image_id), what="warm")
        until(
            lambda: "image_volume_status" not in alice.show(image_id),
            what="the refusal is withdrawn",
        )
        alice.delete_image(image_id)
        until(lambda: not of_image(login, image_id), what="gone")
    alice.delete_volume(ours)
    bob.delete_volume(theirs)


@pytest.fixture
def old_locations() -> Iterator[None]:
    with switched("OLD_LOCATIONS=1"):
        yield


@pytest.mark.usefixtures("old_locations")
@pytest.mark.long
def test_worker_with_strategy_location(
    worker: Worker, images: Images, alice: Person, operator: Person
) -> None:
    cloud = {"name": "worker", "admin_role": "image_volume_worker"}
    with worker(groups(strategy="location", cloud=cloud)) as process:
        process.wait_ready()
        image_id = images(visibility="private")
        until(lambda: is_warm(operator, alice, image_id), what="warm")
        alice.delete_image(image_id)
        until(lambda: not of_image(operator, image_id), what="gone")
