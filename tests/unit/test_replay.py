"""Replay: what is recorded becomes the same keys as what comes in, each once, and nothing is lost
on the way."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from worker.capture import replay
from worker.capture.read import Source, sources
from worker.capture.replay import Checkpoint, Filters, Replay, Tally
from worker.core.errors import Misconfigured, Temporary
from worker.core.job import Job, Key
from worker.engine.router import Router
from worker.observe.creations import Creations
from worker.observe.metrics import Metrics
from worker.testing.fake_cloud import FakeCloud, notification
from worker.testing.rig import FAST, STORES, Rig

FIXTURES = Path(__file__).parents[1] / "fixtures" / "notifications"
CAPTURES = Path(__file__).parents[1] / "fixtures" / "captures"
IMAGE = "7ba7087c-0000-4000-8000-000000000001"
CAPITALS = "7BA7087C-0000-4000-8000-0000000000AB"
VOLUME_TYPE = "3706aa72-0000-4000-8000-000000000001"


def image_id(number: int) -> str:
    return f"{number:08d}-0000-4000-8000-000000000000"


def deleted(number: int, *, at: float = 0.0) -> bytes:
    return notification("image.delete", {"id": image_id(number), "status": "deleted"}, at=at)


def file_of(folder: Path, *bodies: bytes, name: str = "capture.jsonl") -> Path:
    file = folder / name
    file.write_bytes(b"".join(body + b"\n" for body in bodies))
    return file


class Taken:
    """Lanes that only remember; they fail `failures` times first."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.fails_at = -1

    async def submit(self, jobs: Iterable[Job]) -> None:
        jobs = list(jobs)
        if 0 <= self.fails_at <= len(self.jobs):
            raise Temporary("the broker is away")
        self.jobs += jobs

    @property
    def keys(self) -> list[Key]:
        return [job.key for job in self.jobs]


def replaying(
    taken: Taken, *, volume_types: Mapping[str, str] | None = None, **fields: object
) -> Replay:
    rig = Rig(FakeCloud(stores=STORES), targets=(FAST,))
    rig.uses.know(volume_types or {})
    metrics = Metrics()
    router = Router(
        handlers=rig.handlers.values(),
        metrics=metrics,
        creations=Creations(metrics=metrics, uses=rig.uses),
    )
    defaults: dict[str, object] = {
        "filters": Filters(),
        "checkpoint": Checkpoint(None),
        "told": lambda _: None,
    }
    return Replay(router=router, submit=taken.submit, **(defaults | fields))  # type: ignore[arg-type]


async def test_each_key_is_asked_for_once(tmp_path: Path) -> None:
    taken = Taken()
    file = file_of(
        tmp_path, deleted(1), deleted(2), deleted(1), notification("compute.instance.update", {})
    )
    tally = await replaying(taken).run(sources([str(file)]))
    assert taken.keys == [Key("reclaim", image_id(1)), Key("reclaim", image_id(2))]
    assert (tally.messages, tally.routed, tally.ignored, tally.keys, tally.malformed) == (
        4,
        3,
        1,
        2,
        0,
    )


async def test_what_was_recorded_announces_no_deletion(tmp_path: Path) -> None:
    """What is not found may have been restored since, with a deletion that is pending now."""
    taken = Taken()
    gone = notification(
        "volume.delete.end", {"volume_id": image_id(9), "display_name": f"image-{image_id(2)}"}
    )
    await replaying(taken).run(sources([str(file_of(tmp_path, deleted(1), gone))]))
    assert {job.key.image_id for job in taken.jobs} == {image_id(1), image_id(2)}
    assert not any(job.deleted or job.deleted_volume for job in taken.jobs)


async def test_recorded_notifications_give_the_keys_of_live_ones() -> None:
    taken = Taken()
    one = replaying(taken)
    await one.run(sources([str(FIXTURES)]))
    live: set[Key] = set()
    for file in FIXTURES.glob("*.jsonl"):
        for line in file.read_bytes().splitlines():
            live |= {job.key for job in one.router.route(json.loads(line)["raw"].encode()).jobs}
    assert set(taken.keys) == live
    assert len(taken.keys) == len(live) > 50


async def test_bad_lines_are_told_with_their_number_and_kept(tmp_path: Path) -> None:
    told: list[str] = []
    rejects = io.StringIO()
    file = file_of(tmp_path, deleted(1), b"garbage", b'{"half": ', deleted(2))
    tally = await replaying(Taken(), told=told.append, rejects=rejects.write).run(
        sources([str(file)])
    )
    assert (tally.routed, tally.malformed) == (2, 2)
    assert [line.split(": ")[0] for line in told] == [f"{file}:2", f"{file}:3"]
    assert rejects.getvalue() == 'garbage\n{"half":\n'


async def test_many_bad_lines_do_not_fill_the_screen(tmp_path: Path) -> None:
    told: list[str] = []
    tally = await replaying(Taken(), told=told.append).run(
        sources([str(file_of(tmp_path, *[b"garbage"] * 500))])
    )
    assert tally.malformed == 500
    assert len(told) == replay.TOLD + 1


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(since=150.0), [2, 3]),
        (Filters(until=150.0), [1]),
        (Filters(since=150.0, until=250.0), [2]),
        (Filters(image_ids=frozenset({image_id(3)})), [3]),
        (Filters(event_types=frozenset({"image.update"})), []),
        (Filters(event_types=frozenset({"image.delete"})), [1, 2, 3]),
    ],
)
async def test_filters(tmp_path: Path, filters: Filters, expected: list[int]) -> None:
    taken = Taken()
    file = file_of(tmp_path, *(deleted(number, at=100.0 * number) for number in (1, 2, 3)))
    tally = await replaying(taken, filters=filters).run(sources([str(file)]))
    assert taken.keys == [Key("reclaim", image_id(number)) for number in expected]
    assert tally.filtered == 3 - len(expected)


async def test_an_interrupted_replay_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "BATCH", 3)
    first = file_of(tmp_path, *(deleted(number) for number in range(10)), name="a.jsonl")
    second = file_of(tmp_path, *(deleted(number) for number in range(10, 20)), name="b.jsonl")
    note = tmp_path / "checkpoint"
    taken = Taken()
    taken.fails_at = 12
    paths = [str(first), str(second)]
    with pytest.raises(Temporary), closing(Checkpoint(note)) as checkpoint:
        await replaying(taken, checkpoint=checkpoint).run(sources(paths))
    assert len(taken.keys) == 13
    taken.fails_at = -1
    with closing(Checkpoint(note)) as checkpoint:
        tally = await replaying(taken, checkpoint=checkpoint).run(sources(paths))
    assert taken.keys == [Key("reclaim", image_id(number)) for number in range(20)]
    assert tally.messages == 7
    with closing(Checkpoint(note)) as checkpoint:
        assert (await replaying(taken, checkpoint=checkpoint).run(sources(paths))).messages == 0


async def test_told_to_stop_it_ends_after_what_it_has_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "BATCH", 2)
    taken = Taken()
    note = tmp_path / "checkpoint"

    def stop(_source: Source, count: int) -> None:
        one.stopping = count >= 4

    with closing(Checkpoint(note)) as checkpoint:
        one = replaying(taken, checkpoint=checkpoint, advanced=stop)
        tally = await one.run(
            sources([str(file_of(tmp_path, *(deleted(number) for number in range(9))))])
        )
    assert tally.interrupted
    assert len(taken.keys) == 4
    assert [reached["number"] for reached in json.loads(note.read_text()).values()] == [4]


async def test_a_checkpoint_is_of_one_file(tmp_path: Path) -> None:
    note, taken = tmp_path / "checkpoint", Taken()
    file = file_of(tmp_path, deleted(0), deleted(1))

    async def go_on() -> Tally:
        with closing(Checkpoint(note)) as checkpoint:
            return await replaying(taken, checkpoint=checkpoint).run(sources([str(file)]))

    assert (await go_on()).messages == 2
    with file.open("ab") as more:
        more.write(deleted(2)[:40])
    assert (await go_on()).malformed == 1
    with file.open("ab") as more:
        more.write(deleted(2)[40:] + b"\n" + deleted(3) + b"\n")
    assert (await go_on()).messages == 2, "half a line does not count as done"
    assert taken.keys == [Key("reclaim", image_id(number)) for number in range(4)]
    file.write_bytes(deleted(7) + b"\n" + deleted(8) + b"\n")
    with pytest.raises(Misconfigured, match="another file"):
        await go_on()


def test_a_checkpoint_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="no such folder"):
        Checkpoint(tmp_path / "missing" / "checkpoint")


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    for text in ("garbage", "[]", '{"a": "b"}'):
        note = tmp_path / "checkpoint"
        note.write_text(text)
        with pytest.raises(Misconfigured, match="no checkpoint"):
            Checkpoint(note)


def test_one_replay_at_a_time_goes_by_a_checkpoint(tmp_path: Path) -> None:
    note = tmp_path / "checkpoint"
    one, two = (
        Source(str(file_of(tmp_path, deleted(0), name=name))) for name in ("a.jsonl", "b.jsonl")
    )
    with closing(Checkpoint(note)) as first:
        for number in (1, 2, 3):
            with pytest.raises(Misconfigured, match="another replay goes by it"):
                Checkpoint(note)
            # By then it is another file
            first.reach(one, number)
    with closing(Checkpoint(note)) as second:
        second.reach(two, 5)
    with closing(Checkpoint(note)) as third:
        assert (third.of(one), third.of(two)) == (3, 5)
    assert note.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl", "checkpoint"]


def test_a_checkpoint_that_was_begun_and_never_written_is_one_of_nothing(tmp_path: Path) -> None:
    note, source = tmp_path / "checkpoint", Source(str(file_of(tmp_path, deleted(0))))
    note.touch(mode=0o644)
    for reached in (0, 1):
        with closing(Checkpoint(note)) as checkpoint:
            assert checkpoint.of(source) == reached
            checkpoint.reach(source, 1)
    assert note.stat().st_mode & 0o777 == 0o600, (
        "what an older version wrote is for its owner alone too"
    )


async def test_no_faster_than_told(tmp_path: Path) -> None:
    file = file_of(tmp_path, *(deleted(number) for number in range(20)))
    tally = await replaying(Taken(), rate=200.0).run(sources([str(file)]))
    assert tally.seconds >= 19 / 200


async def test_only_so_many_keys_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "REMEMBERED", 2)
    taken = Taken()
    file = file_of(tmp_path, *(deleted(number) for number in (1, 2, 3, 1)))
    await replaying(taken).run(sources([str(file)]))
    assert [key.image_id for key in taken.keys] == [image_id(number) for number in (1, 2, 3, 1)]


PREWARM = Key("prewarm", IMAGE, "fast")


@pytest.mark.parametrize(
    ("name", "messages", "malformed", "key"),
    [
        # [routing key, body] on each line
        ("stacktach-lines", 4, 0, None),
        # Events of Ceilometer, with their notification
        ("panko-events-raw", 1, 0, Key("prewarm", f"{IMAGE[:-1]}2", "fast")),
        ("stf-amqp1-request", 1, 0, PREWARM),
        ("oslo-log-driver", 1, 0, PREWARM),
        ("volume-from-snapshot", 1, 0, None),
        ("envelope-expanded", 1, 0, PREWARM),
        ("bom-pretty-array", 1, 0, PREWARM),
        ("image-id-uppercase", 1, 0, Key("prewarm", CAPITALS, "fast")),
        ("kcat-J", 1, 0, PREWARM),
        ("rabbitmq-tracing-json", None, 0, PREWARM),
        ("two-uses", 2, 0, PREWARM),
    ],
)
async def test_captures_of_other_tools_are_read(
    name: str, messages: int | None, malformed: int, key: Key | None
) -> None:
    taken, told = Taken(), list[str]()
    one = replaying(taken, told=told.append, volume_types={VOLUME_TYPE: "fast"})
    tally = await one.run(sources([str(CAPTURES / f"{name}.json")]))
    assert tally.malformed == malformed, told
    assert messages in (None, tally.messages)
    assert not tally.failed_sources
    if key:
        assert key in taken.keys
    else:
        assert not [one for one in taken.keys if one.handler == "prewarm"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            {"_index": "events", "_source": {"a": 1}},
            "a document of Elasticsearch: pass its _source",
        ),
        ({"took": 3, "hits": {"hits": []}}, "pass the _source of each of its hits"),
        ({"event_type": "image.update", "traits": [], "raw": {}}, "without its notification"),
        ({"time": 1, "level": "info"}, "an object with time, level, in which no notification"),
    ],
)
async def test_a_form_that_is_not_known_is_named(
    tmp_path: Path, content: dict[str, object], says: str
) -> None:
    told: list[str] = []
    file = file_of(tmp_path, json.dumps(content).encode())
    tally = await replaying(Taken(), told=told.append).run(sources([str(file)]))
    assert (tally.malformed, tally.failed_sources) == (1, 1)
    assert says in told[0]


async def test_a_source_that_ends_too_early_has_failed(tmp_path: Path) -> None:
    whole = b"".join(deleted(number) + b"\n" for number in range(500))
    file = tmp_path / "capture.gz"
    file.write_bytes(gzip.compress(whole)[:-20])
    good = file_of(tmp_path, deleted(1), b"garbage")
    tally = await replaying(Taken()).run(sources([str(file), str(good)]))
    assert (tally.sources, tally.failed_sources) == (2, 1)
    # But for the half line at the end, all that is in it
    assert tally.routed > 450


async def test_a_source_that_was_replayed_before_has_not_failed(tmp_path: Path) -> None:
    file, path = file_of(tmp_path, deleted(1), b"garbage"), tmp_path / "checkpoint"
    for expected in (1, 0):
        with closing(Checkpoint(path)) as checkpoint:
            one = replaying(Taken(), checkpoint=checkpoint)
            tally = await one.run(sources([str(file)]))
        assert (tally.malformed, tally.failed_sources) == (expected, 0)


async def test_what_was_cut_off_is_replayed_once_the_file_is_whole(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(deleted(number) + b"\n" for number in range(500)))
    file, path, taken = tmp_path / "capture.gz", tmp_path / "checkpoint", Taken()
    for content in (whole[:-200], whole):
        file.write_bytes(content)
        with closing(Checkpoint(path)) as checkpoint:
            await replaying(taken, checkpoint=checkpoint).run(sources([str(file)]))
    assert {key.image_id for key in taken.keys} == {image_id(number) for number in range(500)}
