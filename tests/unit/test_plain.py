"""What strangers write is seen as what it is: in tables, errors and logs."""

from __future__ import annotations

import argparse
import io
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from cliff.lister import Lister

from worker.cli.table import Table
from worker.core.plain import plain
from worker.observe import log

TURNED = "gpj.\N{RIGHT-TO-LEFT OVERRIDE}exe"
HIDDEN = (
    "\x00\x1b\x7f\x9b\xad\N{RIGHT-TO-LEFT OVERRIDE}\N{LEFT-TO-RIGHT ISOLATE}\N{ARABIC LETTER MARK}"
    "\N{ZERO WIDTH SPACE}\N{LINE SEPARATOR}\N{ZERO WIDTH NO-BREAK SPACE}\N{TAG LATIN SMALL LETTER A}\ud800"
)


@pytest.mark.parametrize("one", HIDDEN)
def test_what_is_not_seen_is_shown(one: str) -> None:
    assert plain(f"a{one}b") == f"a{one.encode('unicode_escape').decode()}b"
    assert plain(plain(f"a{one}b")) == plain(f"a{one}b")


@pytest.mark.parametrize(
    "text",
    ["", "Debian 13 (trixie)", "ä é 日本 \N{PILE OF POO}", "\N{HEBREW LETTER ALEF} ok", "a\nb"],
)
def test_what_is_seen_stays(text: str) -> None:
    assert plain(text) == text
    assert plain("a\nb", keep="") == "a\\nb"


class Listing(Table, Lister):
    """Lists what a stranger has written."""

    def take_action(
        self, parsed_args: argparse.Namespace
    ) -> tuple[tuple[str, ...], Iterator[tuple[Any, ...]]]:
        return ("name", "size"), iter([(TURNED, 1), ("\x1b[2J", 2)])


@pytest.mark.parametrize("style", ["table", "value", "csv", "json", "yaml"])
def test_tables_show_it_in_any_format(style: str) -> None:
    app = SimpleNamespace(stdout=io.StringIO(), LOG=logging.getLogger("x"))
    command = Listing(app, None)  # type: ignore[arg-type]
    assert command.run(command.get_parser("x").parse_args(["-f", style])) == 0
    told = app.stdout.getvalue()
    assert "\\u202eexe" in told
    assert told.replace("\r\n", "\n").replace("\n", "").isprintable()


@pytest.mark.parametrize("style", ["text", "json"])
def test_logs_show_it_on_one_line(style: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    log.setup(style=style)
    try:
        structlog.get_logger("x").warning(
            "image_seen", image=TURNED, why="a\nlevel=error \x1b[2J", number=7
        )
        logging.getLogger("urllib3").warning("%s", TURNED)
    finally:
        root.handlers[:], root.level = before
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all("\\u202eexe" in line and line.isprintable() for line in lines)
