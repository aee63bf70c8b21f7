"""Logs as systemd's journal takes them."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from worker.core.errors import Misconfigured
from worker.observe import log
from worker.observe.log import Journal


class Reader:
    """Stands for the journal: what was sent to it, as systemd would take it apart."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(5)

    def close(self) -> None:
        self._socket.close()

    def entry(self) -> dict[str, str]:
        data, descriptors, _, _ = socket.recv_fds(self._socket, 1 << 20, 1)
        for descriptor in descriptors:
            assert data == b"", "either a datagram or a file"
            with open(descriptor, "rb") as file:
                with pytest.raises(PermissionError):
                    os.truncate(file.fileno(), 0)
                file.seek(0)
                data = file.read()
        found: dict[str, str] = {}
        while data:
            head, _, data = data.partition(b"\n")
            name, equals, value = head.partition(b"=")
            if not equals:
                length = int.from_bytes(data[:8], "little")
                value, end, data = (
                    data[8 : 8 + length],
                    data[8 + length : 9 + length],
                    data[9 + length :],
                )
                assert end == b"\n"
            assert name.decode() not in found
            found[name.decode()] = value.decode()
        return found


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """The journal that all logs of this process go to."""
    reader = Reader(tmp_path / "journal")
    monkeypatch.setattr(log, "JOURNAL", str(reader.path))
    root = logging.getLogger()
    level = root.level
    log.setup(style="journal")
    (mine,) = root.handlers
    yield reader
    root.removeHandler(mine)
    mine.close()
    root.setLevel(level)
    reader.close()


def test_each_field_is_one_of_the_journals(journal: Reader) -> None:
    structlog.get_logger("worker.engine.runner").warning(
        "job_again", image_id="i-1", after=5.0, faults=["a", "b"], reason="over quota"
    )
    assert journal.entry() == {
        "MESSAGE": (
            'job_again image_id=i-1 after=5.0 faults="[\\"a\\", \\"b\\"]" reason="over quota"'
        ),
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "image-volume-worker",
        "EVENT": "job_again",
        "IMAGE_ID": "i-1",
        "AFTER": "5.0",
        "FAULTS": '["a", "b"]',
        "REASON": "over quota",
        "LOGGER": "worker.engine.runner",
    }


@pytest.mark.parametrize(
    ("level", "priority"), [("info", "6"), ("warning", "4"), ("error", "3"), ("critical", "2")]
)
def test_priorities_are_those_of_syslog(journal: Reader, level: str, priority: str) -> None:
    getattr(structlog.get_logger(), level)("started")
    assert journal.entry()["PRIORITY"] == priority


def test_what_is_below_the_level_is_not_sent(journal: Reader) -> None:
    structlog.get_logger().debug("hidden")
    structlog.get_logger().info("shown")
    assert journal.entry()["EVENT"] == "shown"


def test_lines_of_libraries(journal: Reader) -> None:
    logging.getLogger("kombu").warning("lost %s", "it")
    entry = journal.entry()
    assert (entry["MESSAGE"], entry["LOGGER"], entry["PRIORITY"]) == ("lost it", "kombu", "4")


def test_a_traceback_is_part_of_the_message(journal: Reader) -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        structlog.get_logger().exception("job_failed", image_id="i")
    entry = journal.entry()
    first, *rest = entry["MESSAGE"].splitlines()
    assert first == "job_failed image_id=i"
    assert rest[0].startswith("Traceback")
    assert rest[-2:] == ["ValueError: two", "lines"]
    assert "EXCEPTION" not in entry


def test_values_of_several_lines_and_odd_ones(journal: Reader) -> None:
    structlog.get_logger().info(
        "told", why="one\ntwo=2\n", path=Path("/x"), _own=None, lone="\udc80"
    )
    entry = journal.entry()
    assert (entry["WHY"], entry["PATH"], entry["OWN"], entry["LONE"]) == (
        "one\ntwo=2\n",
        "/x",
        "null",
        "\\udc80",
    )
    assert entry["MESSAGE"].startswith('told why="one\\ntwo=2\\n" path=/x')


def test_what_no_datagram_holds(journal: Reader) -> None:
    structlog.get_logger().info("told", why="x" * 5_000_000)
    assert len(journal.entry()["WHY"]) == 5_000_000


def test_a_journal_that_is_started_anew(journal: Reader) -> None:
    structlog.get_logger().info("first")
    assert journal.entry()["EVENT"] == "first"
    journal.close()
    journal.path.unlink()
    again = Reader(journal.path)
    structlog.get_logger().info("second")
    assert again.entry()["EVENT"] == "second"
    again.close()


def test_a_journal_that_is_gone(journal: Reader, capsys: pytest.CaptureFixture[str]) -> None:
    journal.close()
    structlog.get_logger().info("not_lost", image_id="i")
    assert '"image_id": "i"' in capsys.readouterr().err


def test_no_journal_at_start(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured) as raised:
        Journal(str(tmp_path / "none"))
    assert raised.value.faults == (
        (
            f"[log] format: journal: {tmp_path / 'none'}: No such file or directory; is this a "
            f"systemd host?"
        ),
    )


def test_a_log_file_that_cannot_be_opened_again_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = structlog.get_config(), logging.getLogger().handlers[:], logging.getLogger().level
    folder = tmp_path / "log"
    folder.mkdir()
    try:
        log.setup(style="json", file=str(folder / "worker.log"))
        structlog.get_logger("x").info("first")
        # As logrotate does where the folder lets nobody make another file
        folder.rename(tmp_path / "rotated")
        structlog.get_logger("x").info("second")
        structlog.get_logger("x").info("third")
        folder.mkdir()
        structlog.get_logger("x").info("fourth")
    finally:
        for handler in logging.getLogger().handlers:
            handler.close()
        structlog.configure(**before[0])
        logging.getLogger().handlers[:] = before[1]
        logging.getLogger().setLevel(before[2])
    told = capsys.readouterr().err
    assert '"second"' in told
    assert '"third"' in told
    assert '"fourth"' in (folder / "worker.log").read_text()
    assert '"first"' in (tmp_path / "rotated" / "worker.log").read_text()
