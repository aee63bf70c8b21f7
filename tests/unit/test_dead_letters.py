"""Which dead letters the options select, and which jobs are done again."""

from __future__ import annotations

import argparse
import time
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from tests.configurations import GOOD, load
from worker.broker.dead_letters import Kept
from worker.cli import Worker, dead_letters
from worker.cli.dead_letters import List, Replay
from worker.cli.letters import fits
from worker.core.dead_letter import DeadLetter
from worker.core.job import Job, Key

IMAGES = [f"{number:08d}-0000-4000-8000-000000000000" for number in range(3)]


def kept() -> list[Kept]:
    """Three jobs, a message that nobody can read, and something that is no dead letter."""
    now = time.time()
    keys = [
        Key("prewarm", IMAGES[0], "fast"),
        Key("prewarm", IMAGES[1], "slow"),
        Key("reclaim", IMAGES[2]),
    ]
    letters: list[DeadLetter | None] = [
        DeadLetter(
            lane=key.lane,
            reason=f"no luck with {number}",
            last_at=now - 3600.0 * number,
            job=Job(key=key, cause="image.update x", first_at=now),
        )
        for number, key in enumerate(keys)
    ]
    letters += [
        DeadLetter(lane="intake", reason="not a notification", last_at=now, body=b"x"),
        None,
    ]
    return [Kept(str(number), b"", letter, number) for number, letter in enumerate(letters)]


@pytest.mark.parametrize(
    ("words", "ids"),
    [
        ([], "01234"),
        (["--handler", "prewarm"], "01"),
        (["--target", "slow"], "1"),
        (["--image-id", IMAGES[2].upper()], "2"),
        (["--reason", "LUCK WITH 1"], "1"),
        (["--reason", "not a notification"], "3"),
        (["--older-than", "30m"], "12"),
        (["--older-than", "5400s"], "2"),
        (["--handler", "prewarm", "--older-than", "0.5h"], "1"),
        (["--handler", "upload"], ""),
        (["--older-than", "1d"], ""),
    ],
)
def test_letters_are_selected(words: list[str], ids: str) -> None:
    options: argparse.Namespace = List(Worker(), None).get_parser("list").parse_args(words)
    assert "".join(one.id for one in kept() if fits(one, options, time.time())) == ids


@pytest.mark.parametrize(
    ("key", "stays"),
    [
        (Key("prewarm", IMAGES[0], "fast"), False),
        (Key("prewarm", IMAGES[0], "retired"), True),
        (Key("upload", IMAGES[0]), False),
        # Of a plug-in: one that is installed, and one that is not
        (Key("label", IMAGES[0], "rack-1"), False),
        (Key("nosuch", IMAGES[0]), True),
    ],
)
def test_a_job_is_replayed_where_a_worker_may_take_it(
    key: Key, stays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("prewarm", "upload", "reclaim", "label")
    handlers = [EntryPoint(name, "here:it", "handlers") for name in names]
    monkeypatch.setattr(dead_letters, "entry_points", lambda group: handlers)
    letter = DeadLetter(
        lane=key.lane, reason="", last_at=1.0, job=Job(key=key, cause="", first_at=1.0)
    )
    one = Kept("1", b"", letter, 1)
    assert bool(Replay(Worker(), None).hindrance(load(tmp_path, GOOD), one)) is stays
