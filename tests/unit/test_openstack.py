"""The cloud adapter: answers become values, everything else becomes the error whose policy fits."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import keystoneauth1.exceptions as ksa
import pytest
import requests
import structlog

from worker.core.cloud import Location, NewVolume
from worker.core.errors import (
    Blocked,
    Conflict,
    Misconfigured,
    NotFound,
    SpelledOtherwise,
    Temporary,
    TooLarge,
)
from worker.observe.metrics import Metrics
from worker.openstack import answers, login, parse
from worker.openstack.cloud import OpenStackCloud

IMAGE_ID = "f8195267-dc43-443b-86bf-8a5200144f25"


def answer(
    status: int, body: object = None, *, text: str = "", **headers: str
) -> requests.Response:
    response = requests.Response()
    response.status_code = status
    response._content = (
        text.encode() if text else b"" if body is None else json.dumps(body).encode()
    )
    response.headers.update(headers)
    response.url = "http://glance/v2/images/x"
    return response


@dataclass
class Proxy:
    """Stands for openstacksdk's proxy of one service: gives answers in order, remembers what it was
    asked."""

    answers: list[requests.Response | Exception]
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)

    def get_endpoint(self) -> str:
        return "http://glance:9292/v2/"

    def request(self, url: str, method: str, **options: Any) -> requests.Response:
        self.asked.append((method, url, options.get("data")))
        given = self.answers.pop(0)
        if isinstance(given, Exception):
            raise given
        return given


@dataclass
class Connection:
    """Stands for openstacksdk's connection."""

    image: Proxy
    block_storage: Proxy


class Bed:
    """A cloud over canned answers."""

    def __init__(self, *answers: requests.Response | Exception) -> None:
        self.proxy = Proxy(list(answers))
        self.metrics = Metrics()
        self.cloud = OpenStackCloud(
            connection=Connection(self.proxy, self.proxy),
            metrics=self.metrics,
            concurrency=4,
            timeout=30.0,
            sleep=at_once,
        )  # type: ignore[arg-type]

    def count(self, name: str, **labels: str) -> float:
        value = self.metrics.registry.get_sample_value(f"image_volume_worker_{name}", labels)
        return value or 0.0


async def at_once(_: float) -> None:
    """Seconds between retries are tenacity's business, not this test's."""


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (answer(400, {"badRequest": {"message": "wrong state"}}), Conflict),
        (answer(401), Blocked),
        (answer(403, text="<h1>403</h1> policy says no<br />"), Blocked),
        (answer(404, {"itemNotFound": {"message": "no such volume"}}), NotFound),
        (answer(409), Conflict),
        (answer(413, {"overLimit": {"message": "quota"}}), Blocked),
        (answer(429), Temporary),
        (answer(500), Temporary),
        (answer(503), Temporary),
        (answer(504, text="<html>a proxy's page</html>"), Temporary),
        (answer(418), Blocked),
        (answer(200, text="<html>not JSON</html>"), Temporary),
        (ksa.ConnectFailure("refused"), Temporary),
        (ksa.ConnectTimeout("late"), Temporary),
        (ksa.RetriableConnectionFailure("cut"), Temporary),
        (ksa.Unauthorized("token"), Blocked),
        (requests.exceptions.ChunkedEncodingError("cut short"), Temporary),
    ],
)
async def test_a_failed_write_is_its_policy_and_not_tried_again(
    given: requests.Response | Exception, error: type
) -> None:
    bed = Bed(given, answer(200, {}))
    with pytest.raises(error) as raised:
        await bed.cloud.set_metadata("v", {"a": "b"})
    assert type(raised.value) is error
    assert len(bed.proxy.asked) == 1


async def test_metadata_that_cinder_has_twice_is_written_once() -> None:
    """Two writes at once can leave two rows of one key: Cinder writes the first one and shows the
    other."""
    right, shown = {"metadata": {"a": "b"}}, {"metadata": {"a": "old", "c": "d", "e": "f"}}
    bed = Bed(answer(200, shown), answer(200), answer(200, right))
    await bed.cloud.set_metadata("v", {"a": "b", "c": "d"})
    assert [(method, url) for method, url, _ in bed.proxy.asked] == [
        ("POST", "/volumes/v/metadata"), ("DELETE", "/volumes/v/metadata/a"), ("POST", "/volumes/v/metadata"),
    ]  # fmt: skip
    assert bed.proxy.asked[0][2] == bed.proxy.asked[2][2]


async def test_the_name_of_a_key_leads_nowhere_else() -> None:
    bed = Bed(answer(200), answer(200, {"metadata": {"a": "b"}}))
    await bed.cloud.set_metadata("v1", {"a": "b"}, drop={"x/../../../v2"})
    assert [(method, url) for method, url, _ in bed.proxy.asked] == [
        ("DELETE", "/volumes/v1/metadata/x%2F..%2F..%2F..%2Fv2"),
        ("POST", "/volumes/v1/metadata"),
    ]


@pytest.mark.parametrize(
    "body", [{"metadata": {"a": "b", "more": "c"}}, {}, {"metadata": None}, []]
)
async def test_metadata_that_is_as_written_is_not_written_again(body: object) -> None:
    bed = Bed(answer(200, body))
    await bed.cloud.set_metadata("v", {"a": "b"})
    assert len(bed.proxy.asked) == 1


@pytest.mark.parametrize(
    "given", [answer(503), answer(429), ksa.ConnectFailure("refused"), answer(200, text="{")]
)
async def test_a_failed_read_is_tried_again(given: requests.Response | Exception) -> None:
    bed = Bed(given, given, answer(200, {"id": IMAGE_ID, "status": "active"}))
    assert (await bed.cloud.get_image(IMAGE_ID)).status == "active"
    assert bed.count("api_retries_total", service="image", reason="Temporary") == 2
    assert bed.count("api_requests_total", service="image", method="GET", status="200") >= 1


async def test_a_read_is_not_tried_for_ever() -> None:
    bed = Bed(*[answer(503)] * 20)
    with pytest.raises(Temporary):
        await bed.cloud.get_image(IMAGE_ID)
    assert 2 < len(bed.proxy.asked) < 8


async def test_a_service_that_asks_for_minutes_gets_them_from_the_job() -> None:
    bed = Bed(answer(429, **{"Retry-After": "120"}), answer(200, {}))
    with pytest.raises(Temporary) as raised:
        await bed.cloud.get_image(IMAGE_ID)
    assert raised.value.after == 120
    assert len(bed.proxy.asked) == 1


async def test_a_404_that_is_not_glances_own_is_not_believed() -> None:
    with pytest.raises(NotFound):
        await Bed(answer(404, text=f"No image found with ID {IMAGE_ID}")).cloud.get_image(IMAGE_ID)
    with pytest.raises(Temporary):
        await Bed(*[answer(404, text="<html>nginx: no such page</html>")] * 9).cloud.get_image(
            IMAGE_ID
        )


async def test_nor_is_one_that_is_not_cinders_own() -> None:
    gone = {"itemNotFound": {"code": 404, "message": f"Volume {IMAGE_ID} could not be found."}}
    with pytest.raises(NotFound):
        await Bed(answer(404, gone)).cloud.get_volume(IMAGE_ID)
    with pytest.raises(Temporary):
        await Bed(*[answer(404, {"message": "no route"})] * 9).cloud.get_volume(IMAGE_ID)


async def test_an_answer_about_something_else_is_not_believed() -> None:
    other = IMAGE_ID.replace("8", "9", 1)
    assert other != IMAGE_ID
    image = {"id": other, "status": "active"}
    with pytest.raises(Temporary, match="makes no sense"):
        await Bed(*[answer(200, image)] * 9).cloud.get_image(IMAGE_ID)
    volume = {"id": other, "name": "image-x", "status": "available", "size": 1}
    with pytest.raises(Temporary, match="makes no sense"):
        await Bed(*[answer(200, {"volume": volume})] * 9).cloud.get_volume(IMAGE_ID)
    # A proxy that drops the query
    found = await Bed(answer(200, {"volumes": [volume]})).cloud.find_volumes("image-y")
    assert found == ()


async def test_a_cluster_is_down_when_all_of_its_services_are() -> None:
    def service(host: str, state: str, cluster: str | None = None) -> dict[str, object]:
        words = {"binary": "cinder-volume", "status": "enabled", "cluster": cluster}
        return {"host": host, "state": state, **words}

    rows = [
        service("h1@a", "up"), service("h1@b", "down"), service("h2@c", "down", "one@c"),
        service("h3@c", "up", "one@c"), service("h2@d", "down", "one@d"), service("h3@d", "down", "one@d"),
    ]  # fmt: skip
    bed = Bed(answer(200, {"services": rows}))
    assert await bed.cloud.list_down() == {"h1@b", "one@d"}


@pytest.mark.parametrize("body", [{}, {"images": None}, [], {"error": "?"}])
async def test_an_answer_without_a_list_is_no_empty_list(body: object) -> None:
    with pytest.raises(Temporary):
        _ = [image async for image in Bed(*[answer(200, body)] * 9).cloud.list_images()]


@pytest.mark.parametrize(
    "body", [{"status": "active"}, {"id": "x", "status": None}, {"id": [], "status": "active"}, []]
)
async def test_an_answer_that_makes_no_sense_is_asked_for_again(body: object) -> None:
    good = answer(200, {"id": IMAGE_ID, "status": "active"})
    assert (await Bed(answer(200, body), good).cloud.get_image(IMAGE_ID)).id == IMAGE_ID
    with pytest.raises(Temporary, match="makes no sense"):
        await Bed(*[answer(200, body)] * 9).cloud.get_image(IMAGE_ID)


async def test_pages_that_go_round_end() -> None:
    page = {"images": [{"id": "x", "status": "active"}], "next": "/v2/images?marker=x"}
    with pytest.raises(Temporary, match="round"):
        _ = [image async for image in Bed(*[answer(200, page)] * 9).cloud.list_images()]


@pytest.mark.parametrize("body", [{}, {"locations": "none"}, "?"])
async def test_no_list_of_locations_is_not_an_empty_one(body: object) -> None:
    with pytest.raises(Temporary):
        await Bed(*[answer(200, body)] * 9).cloud.get_locations(IMAGE_ID)


@pytest.mark.parametrize(
    ("said", "after"),
    [("7", 7.0), ("-1", 0.0), ("inf", 900.0), ("99999999999", 900.0), ("soon", None)],
)
async def test_nobody_waits_for_ever(said: str, after: float | None) -> None:
    with pytest.raises(Temporary) as caught:
        await Bed(*[answer(503, {}, **{"Retry-After": said})] * 9).cloud.get_image(IMAGE_ID)
    assert caught.value.after == after


async def test_lists_are_read_page_by_page() -> None:
    rows = [{"id": str(number), "status": "active"} for number in range(3)]
    bed = Bed(
        answer(200, {"images": rows[:2], "next": "/v2/images?marker=1"}),
        answer(200, {"images": rows[2:]}),
        answer(200, {"images": [{"id": "hidden", "status": "active"}]}),
    )
    assert [image.id async for image in bed.cloud.list_images()] == ["0", "1", "2", "hidden"]
    assert ["os_hidden=true" in url for _, url in (asked[:2] for asked in bed.proxy.asked)] == [
        False,
        False,
        True,
    ]
    volume = {"id": "v", "status": "available", "size": 1}
    link = {"rel": "next", "href": "http://elsewhere/v3/p/volumes/detail?limit=1000&marker=v"}
    bed = Bed(
        answer(200, {"volumes": [volume], "volumes_links": [link]}),
        answer(200, {"volumes": [volume]}),
    )
    assert len([one async for one in bed.cloud.list_volumes()]) == 2
    assert bed.proxy.asked[1][1] == "/volumes/detail?limit=1000&marker=v"


@pytest.mark.parametrize(
    ("url", "store", "volume_id"),
    [
        ("cinder://fast/v1", "fast", "v1"),
        ("cinder://v1", "disk", "v1"),
        ("file:///var/lib/glance/images/x", "disk", ""),
        ("rbd://fsid/pool/image/snap", "disk", ""),
    ],
)
async def test_locations(url: str, store: str, volume_id: str) -> None:
    bed = Bed(answer(200, [{"url": url, "metadata": {"store": "disk"}}]))
    assert await bed.cloud.get_locations(IMAGE_ID) == (
        Location(url=url, store=store, volume_id=volume_id),
    )


async def test_a_glance_without_the_location_api_shows_them_in_the_image() -> None:
    image = {
        "id": IMAGE_ID,
        "status": "active",
        "locations": [{"url": "cinder://fast/v1", "metadata": {}}],
    }
    bed = Bed(answer(404), answer(200, image))
    assert [location.volume_id for location in await bed.cloud.get_locations(IMAGE_ID)] == ["v1"]


async def test_an_image_is_known_by_its_own_spelling_alone() -> None:
    bed = Bed(answer(200, {"id": IMAGE_ID, "status": "active"}))
    with pytest.raises(SpelledOtherwise) as caught:
        await bed.cloud.get_image(IMAGE_ID.upper())
    assert caught.value.image_id == IMAGE_ID


async def test_a_new_volume_carries_its_metadata_from_the_first_request() -> None:
    bed = Bed(answer(202, {"volume": {"id": "v", "status": "creating", "size": 2}}))
    new = NewVolume(
        name="n",
        size=2,
        volume_type="t",
        image_id=IMAGE_ID,
        availability_zone="az",
        metadata={"a": "b"},
    )
    assert (await bed.cloud.create_volume(new)).id == "v"
    sent = json.loads(bed.proxy.asked[0][2] or "")["volume"]
    assert sent["metadata"] == {"a": "b"}
    assert (sent["imageRef"], sent["volume_type"], sent["availability_zone"]) == (
        IMAGE_ID,
        "t",
        "az",
    )


def test_an_error_tells_its_innermost_reason_only() -> None:
    wrapped = ksa.ConnectFailure("http://host/: <object at 0x7f>")
    wrapped.__cause__ = OSError("[Errno 111] Connection refused")
    assert answers.one_line(wrapped) == "OSError: [Errno 111] Connection refused"


async def test_urgent_requests_do_not_wait_behind_others() -> None:
    held = threading.Event()

    class Slow(Proxy):
        def request(self, url: str, method: str, **options: Any) -> requests.Response:
            if "slow" in url:
                held.wait(10)
            return answer(200, {"id": url.rpartition("/")[2], "status": "queued"})

    proxy = Slow([])
    connection: Any = Connection(proxy, proxy)
    common, urgent = (
        OpenStackCloud(
            connection=connection,
            metrics=Metrics(),
            concurrency=2,
            timeout=30.0,
        )
        for _ in range(2)
    )
    waiting = [asyncio.create_task(common.get_image(f"slow-{n}")) for n in range(8)]
    try:
        async with asyncio.timeout(5):
            await urgent.get_image(IMAGE_ID)
        assert not any(task.done() for task in waiting)
    finally:
        held.set()
        await asyncio.gather(*waiting)


@pytest.mark.parametrize(
    "entry", [[1, 2], {"auth": {"auth_url": 7, "username": "u", "password": "p"}}]
)
def test_a_clouds_yaml_of_another_shape_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: object
) -> None:
    file = tmp_path / "clouds.yaml"
    file.write_text(json.dumps({"clouds": {"odd": entry}}))
    monkeypatch.setattr(login, "CONFIG_FILES", [str(file)])
    with pytest.raises(Misconfigured, match=r"\[cloud\]"):
        login.connect(name="odd", timeout=1.0, concurrency=1)


MIB = 1 << 20


class Listing(Proxy):
    """Lists rows of these sizes, in bytes, as Glance and Cinder do; answers that are too large are
    refused as our adapter does."""

    def __init__(self, *sizes: int) -> None:
        super().__init__([])
        self.sizes = sizes
        self.fails = 0

    def request(self, url: str, method: str, **options: Any) -> requests.Response:
        self.asked.append((method, url, None))
        if self.fails:
            self.fails -= 1
            raise ksa.ConnectTimeout("late")
        query = dict(parse_qsl(urlsplit(url).query))
        limit, first = int(query["limit"]), int(query.get("marker", -1)) + 1
        numbers = range(len(self.sizes))[first : first + limit]
        weight = sum(self.sizes[number] for number in numbers)
        if "/volumes?" not in url and weight > (8 * MIB if limit > 1 else 64 * MIB):
            raise TooLarge("an answer of more than 64 MiB")
        rows = [{"id": str(number), **ROW} for number in numbers]
        if len(rows) < limit:
            return answer(200, {"images": rows, "volumes": rows})
        following = f"{url.partition('?')[0]}?{urlencode({**query, 'marker': numbers[-1]})}"
        links = [{"rel": "next", "href": f"http://elsewhere{following}"}]
        return answer(
            200, {"images": rows, "next": following, "volumes": rows, "volumes_links": links}
        )

    def limits(self) -> list[int]:
        """The numbers of rows that it was asked for."""
        return [int(dict(parse_qsl(urlsplit(url).query))["limit"]) for _, url, _ in self.asked]


ROW = {
    "status": "active",
    "size": 1,
    "owner": "bob",
    "visibility": "private",
    "os-vol-tenant-attr:tenant_id": "bob",
    "volume_image_metadata": {"signature_verified": "False"},
}


def listing(*sizes: int) -> tuple[Listing, OpenStackCloud]:
    proxy, bed = Listing(*sizes), Bed()
    bed.cloud._connection = Connection(proxy, proxy)  # type: ignore[assignment]
    bed.cloud._project_id = "ours"
    return proxy, bed.cloud


@pytest.mark.parametrize("large", [False, True])
def test_of_a_volume_with_too_much_image_metadata_only_the_image_is_known(large: bool) -> None:
    """Cinder does not limit it, and jobs hold volumes."""
    given = {"image_id": "i", "os_type": "linux"} | {
        f"p{n}": "x" * 65_535 for n in range(16 * large)
    }
    row = {"id": "v", "name": "n", "created_at": "", "volume_type": "fast", "metadata": {}}
    volume = parse.whole_volume({**ROW, **row, "volume_image_metadata": given})
    assert volume.oversized == large
    assert volume.image_properties == ({"image_id": "i"} if large else given)


async def test_large_rows_are_listed_in_small_pages() -> None:
    """A user may give an image 128 properties of 64 KiB: 50 MiB if JSON escapes each character."""
    sizes = [4000] * 1500
    sizes[20:29] = [8 * MIB] * 9
    sizes[700] = sizes[1499] = 50 * MIB
    proxy, cloud = listing(*sizes)
    listed = [image.id async for image in cloud._images({}, parse.image)]
    assert listed == [str(number) for number in range(1500)]
    assert len(proxy.asked) < 80


async def test_ordinary_rows_need_no_more_requests() -> None:
    proxy, cloud = listing(*[4000] * 2500)
    assert len([volume async for volume in cloud.list_volumes()]) == 2500
    assert proxy.limits() == [1000, 1000, 1000]


async def test_a_page_that_takes_too_long_is_asked_for_with_fewer_rows() -> None:
    """A page of a hundred large rows is not made in time."""
    proxy, cloud = listing(*[4000] * 30)
    proxy.fails = 3
    assert len([volume async for volume in cloud.list_volumes()]) == 30
    assert proxy.limits() == [1000, 100, 10, 1, 2, 4, 8, 16]


@pytest.mark.parametrize("size", [8 * MIB, 50 * MIB])
async def test_large_rows_hide_no_witness(size: int) -> None:
    _, cloud = listing(*[size] * 9)
    assert await cloud.find_witness() == "0"
    assert await cloud.find_volume_witness() == "0"
    assert not await cloud.notes_downloads()
    assert len(await cloud.newest_images(limit=5)) == 5


async def test_a_volume_that_is_too_large_alone_is_left_out_of_listings() -> None:
    """Cinder does not limit the number of image metadata that a user sets on a volume."""
    _, cloud = listing(4000, 70 * MIB, 4000, 70 * MIB)
    with structlog.testing.capture_logs() as lines:
        assert [volume.id async for volume in cloud.list_volumes()] == ["0", "2"]
    assert [line["id"] for line in lines if line["event"] == "row_left_out"] == ["1", "3"]
    assert await cloud.find_volume_witness() == "0"
    # Else another one would be made
    with pytest.raises(TooLarge, match="one of the volumes, the next after 0"):
        await cloud.find_volumes("image-x")


async def test_an_image_that_is_too_large_alone_is_named() -> None:
    """An operator may allow more properties than Glance does by default."""
    proxy, cloud = listing(4000, 70 * MIB)
    with pytest.raises(TooLarge, match="one of the images, the next after 0"):
        _ = [image async for image in cloud.list_images()]
    # The same answer again would help nobody
    assert proxy.limits() == [1000, 100, 10, 1, 2, 1]


async def test_an_image_that_is_too_large_is_no_cloud_that_is_away() -> None:
    proxy, cloud = listing(70 * MIB)
    assert await cloud.shows_locations()
    assert proxy.limits() == [1]


async def test_an_object_that_is_too_large_is_not_asked_for_again() -> None:
    bed = Bed(TooLarge("an answer of more than 64 MiB"))
    with pytest.raises(TooLarge, match="image: an answer of more"):
        await bed.cloud.get_image(IMAGE_ID)
    assert bed.count("api_requests_total", service="image", method="GET", status="none") == 1


def test_of_a_long_property_the_beginning_is_kept() -> None:
    """Jobs hold images for long, and one user may have many with 8 MiB of properties."""
    image = parse.image({"id": IMAGE_ID, "status": "active", "p": "x" * 65_000, "os_type": "linux"})
    assert len(image.properties["p"]) == parse.LONGEST
    assert image.properties["os_type"] == "linux"
