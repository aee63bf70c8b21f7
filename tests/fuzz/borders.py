"""Where something comes in from outside: each border takes any bytes, and lets through only what it
promises."""

from __future__ import annotations

import asyncio
import bz2
import contextlib
import gzip
import io
import json
import lzma
import tempfile
import zlib
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from backports import zstd
from oslo_config import cfg

from handlers.upload import plan, seen
from tests.fuzz.dice import Dice
from worker import settings
from worker.broker import url as broker_url
from worker.capture import forms, read, replay
from worker.capture.record import line_of
from worker.core.cloud import Image, Location
from worker.core.compression import BZIP2, GZIP, LZMA, ZSTD
from worker.core.dead_letter import MOST_BODY, DeadLetter
from worker.core.errors import Blocked, Malformed, Misconfigured, NotFound, Temporary
from worker.core.job import Job
from worker.core.masking import masked_bytes
from worker.core.notification import IMAGE_ID, decode
from worker.core.target import TAG, Uploads
from worker.engine.router import Router
from worker.observe.creations import Creations
from worker.openstack.cloud import OpenStackCloud
from worker.testing.fake_cloud import FakeCloud
from worker.testing.rig import Rig

FIXTURES = Path(__file__).parents[1] / "fixtures"
WIRE = tuple(
    json.loads(line)["raw"].encode()
    for file in sorted((FIXTURES / "notifications").glob("*.jsonl"))
    for line in file.read_text().splitlines()
)
ANSWERS: dict[str, list[Any]] = json.loads((FIXTURES / "answers.json").read_text())
SAMPLE = (Path(__file__).parents[2] / "config" / "image-volume-worker.conf.sample").read_text()
OPTIONS = [
    line.removeprefix("#").strip()
    for line in SAMPLE.splitlines()
    if " = " in line or line.startswith("[")
]
URL_PARTS = (
    "rabbit://", "amqp://", "amqps://", "memory://", "cinder://", "u:p@", "h", ":5672", ":99999", "/", "//", "?",
    "ssl=1", "&", "[::1]", "%2f", "%zz", ",", ";", "$", "\x00", "é", "[", "]", "@", "#", "ssl_ca_file=/x", " ",
)  # fmt: skip
Border = Callable[[bytes], None]
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    GZIP: zlib.compress,
    BZIP2: bz2.compress,
    LZMA: partial(lzma.compress, preset=0),
    ZSTD: zstd.compress,
}


def message(dice: Dice) -> bytes:
    """A message off the wire: a real one with something wrong in it, or just bytes."""
    if dice.below(8) == 0:
        return dice.left
    body = decode(dice.pick(WIRE))
    body = (
        {**body, "payload": dice.mutated(body.get("payload"))}
        if dice.below(3)
        else dice.mutated(body)
    )
    text = json.dumps(body)
    match dice.below(4):
        case 0:
            return text.encode()
        case 1:
            return json.dumps({"oslo.version": "2.0", "oslo.message": dice.mutated(body)}).encode()
        case 2:
            cut = dice.below(len(text) + 1)
            return text[:cut].encode() + dice.left[:8] + text[cut:].encode()
        case _:
            return json.dumps({"oslo.version": "2.0", "oslo.message": text}).encode()


class Borders:
    """All borders around one worker that is not running."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._cloud = FakeCloud(stores={"cinder-fast": "fast", "cinder-slow": "slow"})
        self._rig = self._loop.run_until_complete(self._made())
        self._router = Router(
            handlers=self._rig.handlers.values(),
            metrics=self._rig.metrics,
            creations=Creations(metrics=self._rig.metrics, uses=self._rig.uses),
        )
        self._folder = tempfile.TemporaryDirectory()

    async def _made(self) -> Rig:
        return Rig(self._cloud)

    def close(self) -> None:
        """Leave nothing behind."""
        self._loop.close()
        self._folder.cleanup()

    @property
    def all(self) -> dict[str, Border]:
        """By name."""
        return {
            "wire": self.wire,
            "record": self.record,
            "lane": self.lane,
            "capture": self.capture,
            "file": self.file,
            "checkpoint": self.checkpoint,
            "answer": self.answer,
            "configuration": self.configuration,
            "url": self.url,
        }

    def wire(self, data: bytes) -> None:
        """A notification becomes jobs of keys that exist, or a dead letter of bounded size; nothing
        else."""
        dice = Dice(data)
        body, compression = message(dice), dice.pick(tuple(COMPRESSORS))
        # Compressed as its header says, or not
        if dice.below(4):
            body = COMPRESSORS[compression](body)
        routed = self._router.route(body, compression)
        lanes = self._rig.runner.queue.lanes
        for job in routed.jobs:
            assert IMAGE_ID.fullmatch(job.key.image_id), job
            assert job.key.lane in lanes, job
            assert len(job.cause) <= 200
            assert Job.from_bytes(job.to_bytes()) == job
        assert len(routed.jobs) <= 2 * len(lanes)
        if letter := routed.letter:
            assert not routed.jobs
            assert len(letter.body) <= MOST_BODY
            assert len(letter.body) == MOST_BODY or masked_bytes(letter.body) == letter.body
            assert DeadLetter.from_bytes(letter.to_bytes()) == letter

    def record(self, data: bytes) -> None:
        """A notification becomes a line of JSON, without the secret planted in it; half a message
        keeps none."""
        dice = Dice(data)
        message = decode(dice.pick(WIRE))
        secret = "".join(
            dice.pick(("S3CRET", "'", '"', "\\", ",", "@", " ", "é", "{", "]"))
            for _ in range(dice.below(8))
        )
        name = dice.pick(
            (
                "password",
                "adminPass",
                "auth_token",
                "user_data",
                "_context_auth_token",
                "secret_key",
            )
        )
        message["payload"] = {
            "rest": dice.mutated(message.get("payload")),
            name: f"a{secret}",
            "size": 1,
        }
        line = line_of(message)
        assert line.count(b"\n") == 1
        assert json.loads(line)["payload"][name] == "***"
        text = json.dumps(message).encode()
        for body in (
            text,
            json.dumps({"oslo.version": "2.0", "oslo.message": text.decode()}).encode(),
        ):
            assert b"S3CRET" not in masked_bytes(body[: dice.below(len(body) + 1)])

    def lane(self, data: bytes) -> None:
        """What lies in a lane or among the dead letters is one of ours, or Malformed."""
        dice = Dice(data)
        made = {
            "key": ["prewarm", "0" * 36, "fast"], "cause": "image.update", "attempt": 1, "first_at": 1.0, "due": 2.0,
            "reason": "x", "used": 0.0, "project": "p",
        }  # fmt: skip
        letter = {
            "lane": "x",
            "reason": "y",
            "last_at": 1.0,
            "job": json.dumps(made),
            "body": None,
            "traceback": "",
        }
        body = (
            dice.left
            if dice.below(6) == 0
            else json.dumps(dice.mutated(dice.pick((made, letter)))).encode()
        )
        for kind in (Job, DeadLetter):
            with contextlib.suppress(Malformed):
                value = kind.from_bytes(body)
                assert repr(kind.from_bytes(value.to_bytes())) == repr(value)

    def capture(self, data: bytes) -> None:
        """A capture gives messages, each with a body or a fault, and never more than it has
        bytes."""
        dice = Dice(data)
        parts = [message(dice) for _ in range(dice.below(4))]
        glue = dice.pick((b"\n", b",\n", b"", b" ", b"\r\n", b"\n\n"))
        around = dice.pick(
            ((b"", b""), (b"[", b"]"), (b"[\n", b"\n]"), (b"{", b""), (b'{"a":[', b"]}"))
        )
        content = around[0] + glue.join(parts) + around[1] + dice.left
        number = count = 0
        for found in read._split(io.BufferedReader(io.BytesIO(content))):  # type: ignore[arg-type]
            assert found.number > number
            number, count = found.number, count + 1
            if not found.fault:
                assert found.body
                with contextlib.suppress(Malformed):
                    assert forms.decoded(found.body)["event_type"]
        assert count <= len(content) + 1

    def file(self, data: bytes) -> None:
        """A capture in a file, packed or not, gives its messages until where it is damaged, and one
        fault there."""
        dice = Dice(data)
        content = b"\n".join(message(dice) for _ in range(dice.below(3)))
        packed = dice.pick((bytes, gzip.compress, zstd.compress))(content)
        cut = dice.below(len(packed) + 1)
        match dice.below(3):
            case 0:
                packed = packed[:cut]
            case 1:
                packed = packed[:cut] + dice.left[:4] + packed[cut + 4 :]
            case _:
                packed += dice.left
        path = Path(self._folder.name, "capture")
        path.write_bytes(packed)
        number = 0
        for found in read.Source(str(path)).messages():
            assert found.number > number
            number = found.number

    def checkpoint(self, data: bytes) -> None:
        """What lies where a replay left off is how far it came, or Misconfigured."""
        dice = Dice(data)
        source = Path(self._folder.name, "source")
        source.write_bytes(b"x")
        length, head = read.Source(str(source)).head(4096)
        reached = {str(source): {"number": dice.below(9), "length": length, "head": head}}
        path = Path(self._folder.name, "checkpoint")
        path.write_bytes(
            dice.left if dice.below(6) == 0 else json.dumps(dice.mutated(reached)).encode()
        )
        with (
            contextlib.suppress(Misconfigured),
            contextlib.closing(replay.Checkpoint(path)) as checkpoint,
        ):
            assert checkpoint.of(read.Source(str(source))) >= 0

    def answer(self, data: bytes) -> None:
        """What a service answers becomes values that handlers can plan by, or one of our own
        errors."""
        self._loop.run_until_complete(self._answer(Dice(data)))

    async def _answer(self, dice: Dice) -> None:
        cloud = Answering(dice)
        kept: list[Any] = []
        for verb in dice.pick(VERBS), dice.pick(VERBS):
            with contextlib.suppress(Temporary, Blocked, NotFound):
                kept.append(await verb(cloud))
        image = Image(
            id="0" * 36,
            status="active",
            owner="p",
            disk_format="raw",
            container_format="bare",
            visibility="public",
        )
        images = [one for one in kept if isinstance(one, Image)] or [image]
        volumes = tuple(
            one
            for some in kept
            if isinstance(some, tuple)
            for one in some
            if hasattr(one, "metadata")
        )
        for one in images:
            for handler in self._rig.handlers.values():
                for missing in handler.incomplete(one.id, one, volumes):
                    assert missing.key.image_id == one.id
            read = seen.Seen(image=one, now=1.0, clones=volumes, locations=())
            assert plan.plan(read, Uploads(), ()) is not None

    def configuration(self, data: bytes) -> None:
        """A configuration is one, or Misconfigured names what is wrong with it."""
        dice = Dice(data)
        lines = []
        for _ in range(dice.below(30)):
            line = dice.pick(OPTIONS)
            if " = " in line and dice.below(2):
                line = f"{line.split(' = ')[0]} = {str(dice.hostile())[:2000]}"
            lines.append(line)
        text = "\n".join(lines) + "\n" + dice.left.decode("latin-1")
        file = Path(self._folder.name, "fuzz.conf")
        file.write_text(text, "utf-8", errors=dice.pick(("surrogatepass", "replace")))
        conf = cfg.ConfigOpts()
        settings.register(conf)
        try:
            conf([], default_config_files=[str(file)], default_config_dirs=[])
        except (cfg.Error, UnicodeDecodeError):
            return
        with contextlib.suppress(Misconfigured):
            settings.load(conf)

    def url(self, data: bytes) -> None:
        """A URL of a broker or a location is taken apart, or refused."""
        dice = Dice(data)
        text = "".join(dice.pick(URL_PARTS) for _ in range(dice.below(16))) + dice.left[:30].decode(
            "utf-8", "replace"
        )
        with contextlib.suppress(Misconfigured):
            assert broker_url.parse(text).hosts
        with contextlib.suppress(ValueError):
            assert Location.from_url(text).url == text


class Answering(OpenStackCloud):
    """A cloud whose services answer with something like an answer of theirs."""

    def __init__(self, dice: Dice) -> None:
        self._dice = dice
        self._project_id = "p"

    async def _retried(self, service: str, call: Callable[[], Awaitable[Any]]) -> Any:
        return await call()

    async def _request(self, service: str, method: str, url: str, **_: object) -> Any:
        dice = self._dice
        path = url.split("?", maxsplit=1)[0]
        rows = {
            "/v2/images": "images", "detail": "stores", "stores": "stores", "tasks": "tasks", "members": "members",
            "/versions": "versions", "/types": "volume_types", "get_pools": "pools", "/os-services": "services",
            "/os-availability-zone": "availabilityZoneInfo", "/volumes/detail": "volumes",
        }  # fmt: skip
        kinds = {"availabilityZoneInfo": "zone"}
        for end, name in rows.items():
            if path.endswith(end) and not (end == "detail" and service != "image"):
                kind = kinds.get(name, name.removesuffix("s"))
                answer: Any = {name: [dice.pick(ANSWERS[kind]) for _ in range(dice.below(4))]}
                break
        else:
            if path.endswith("/locations"):
                answer = [dice.pick(ANSWERS["location"])]
            elif "/os-quota-sets" in path:
                answer = dice.pick(ANSWERS["quota"])
            elif path.endswith("/import"):
                answer = dice.pick(ANSWERS["import"])
            elif "/volumes" in path:
                answer = {"volume": dice.pick(ANSWERS["volume"])}
            else:
                answer = dice.pick(ANSWERS["image"])
        return dice.mutated(answer) if dice.below(8) else json.loads(json.dumps(dice.hostile()))


async def every(listing: Any) -> tuple[Any, ...]:
    """All that is listed."""
    return tuple([one async for one in listing])


ID = "0" * 36
VERBS: tuple[Callable[[Answering], Awaitable[Any]], ...] = (
    lambda cloud: cloud.get_image(ID),
    lambda cloud: every(cloud.list_images()),
    lambda cloud: cloud.get_locations(ID),
    lambda cloud: cloud.imports_locations(),
    lambda cloud: cloud.list_tasks(ID),
    lambda cloud: cloud.list_members(ID),
    lambda cloud: cloud.list_stores(),
    lambda cloud: cloud.import_methods(),
    lambda cloud: cloud.get_volume(ID),
    lambda cloud: cloud.find_volumes("image-" + ID),
    lambda cloud: every(cloud.list_volumes(TAG)),
    lambda cloud: cloud.get_quota("local-1"),
    lambda cloud: cloud.newest_images(),
    lambda cloud: cloud.describe_volume_types(),
    lambda cloud: cloud.encrypts(ID),
    lambda cloud: cloud.list_pools(),
    lambda cloud: cloud.list_services(),
    lambda cloud: cloud.list_down(),
    lambda cloud: cloud.list_zones(),
    lambda cloud: cloud.limits(),
)
