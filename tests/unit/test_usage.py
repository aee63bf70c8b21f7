"""The command line: what is wrong with it is said in one line, before anything is asked or
written."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.cli import TOLD_BY_ERRORS, Worker
from worker.observe.log import QUIET

CONFIG = """
[notifications]
transport_urls = rabbit://u:p@127.0.0.1:1/
[work]
url = amqp://u:p@127.0.0.1:1/
[prewarm]
targets = fast
[target:fast]
volume_type = fast
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a configuration and a capture; logging is as it was afterwards."""
    (tmp_path / "worker.conf").write_text(CONFIG)
    (tmp_path / "capture.jsonl").write_text("garbage\n")
    (tmp_path / "link").symlink_to(tmp_path / "capture.jsonl")
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in (*TOLD_BY_ERRORS, *QUIET)}
    yield tmp_path
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "replay capture.jsonl --dry-run --rejects capture.jsonl",
            "--rejects capture.jsonl is one of the sources",
        ),
        ("replay . --dry-run --rejects link", "--rejects link is one of the sources"),
        (
            "replay capture.jsonl --checkpoint capture.jsonl",
            "--checkpoint capture.jsonl is one of the sources",
        ),
        ("replay missing", "missing: no such file or folder"),
        ("record missing/capture.jsonl", "missing/capture.jsonl: No such file or directory"),
        ("record --rotate-size 1M", "are for a file"),
        ("record - --keep 3", "are for a file"),
        ("record --count=-1", "'-1' is not a number"),
        ("record x.jsonl --keep=-2", "'-2' is not a number"),
        ("status --lanes --target fast", "--state is about images"),
        ("status --summary --state warm", "--state is about images"),
        ("status --state=", "invalid choice: ''"),
        ("dead-letters drop", "say which"),
        ("dead-letters replay", "say which"),
        ("dead-letters show", "say which"),
        ("replay capture.jsonl --checkpoint missing/note", "missing/note: no such folder"),
    ],
)
def test_wrong_usage(
    folder: Path, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    try:
        status = Worker().run(["--config-file", "worker.conf", *words.split()])
    except SystemExit as error:
        status = int(error.code or 0)
    told = capsys.readouterr()
    assert (status, told.out) == (2, "")
    assert said in told.err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
