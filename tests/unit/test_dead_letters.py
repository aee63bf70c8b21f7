"""Which dead letters the options select."""

from __future__ import annotations

import argparse
import time

import pytest

from worker.broker.dead_letters import Kept
from worker.cli import Worker
from worker.cli.dead_letters import List
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
