"""Tables for people: what fits a terminal."""

from __future__ import annotations

import argparse
import io
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from cliff.lister import Lister
from wcwidth import wcswidth

from worker.cli import names
from worker.cli.table import Table, fit
from worker.core.cloud import Image
from worker.core.errors import Misconfigured, NotFound
from worker.openstack.cloud import OpenStackCloud

LAST = "0ad1c7f2-5b3e-4c66-9d1c-0f0a8b7c5d11"
ONE, OTHER = "f8195267-dc43-443b-86bf-8a5200144f25", "f8195267-0000-443b-86bf-8a5200144f25"
WHY = f"the Image-Volume {OTHER} is not available: Cinder says error_deleting, see status"
COLUMNS = ("Image", "Name", "Target", "Empty", "GiB", "Why")
ROWS = [(ONE, "debian-13", "local-1", "", 4, WHY), (OTHER, "cirros", "local-2", None, 1, "")]


def test_columns_without_content_are_dropped_at_any_width() -> None:
    fitted = fit(COLUMNS, ROWS, width=0)
    assert fitted.columns == ("Image", "Name", "Target", "GiB", "Why")
    assert fitted.rows[0] == (ONE, "debian-13", "local-1", 4, WHY)


def test_a_table_without_rows_keeps_its_columns() -> None:
    assert fit(COLUMNS, [], width=80).columns == COLUMNS


def test_a_wide_terminal_shows_all() -> None:
    fitted = fit(COLUMNS, ROWS, width=200, optional=("GiB",))
    assert (fitted.rows[0][0], fitted.left_out) == (ONE, ())
    assert "GiB" in fitted.columns


@pytest.mark.parametrize("width", [60, 72, 80, 100])
def test_a_narrow_one_gets_short_ids_fewer_columns_and_folded_texts(width: int) -> None:
    fitted = fit(COLUMNS, ROWS, width=width, optional=("GiB",))
    assert fitted.rows[0][0] == ONE[:8]
    assert fitted.left_out == ("GiB",)
    assert "GiB" not in fitted.columns
    # An id in a text stays whole
    assert OTHER in fitted.rows[0][-1].split()
    assert fitted.rows[0][-1].replace("\n", " ") == WHY
    lines = {
        column: max(
            len(column),
            *(len(line) for row in fitted.rows for line in str(row[number]).splitlines()),
        )
        for number, column in enumerate(fitted.columns)
    }
    assert sum(lines.values()) + 3 * len(lines) + 1 <= max(width, 36 + 46)


def test_wide_letters_count_twice() -> None:
    rows = [("日本語のイメージ" * 3, "x" * 10)]
    assert fit(("Name", "Other"), rows, width=70, optional=("Other",)).left_out == ()
    assert wcswidth(rows[0][0]) == 48
    assert fit(("Name", "Other"), rows, width=60, optional=("Other",)).left_out == ("Other",)


class Shown(Table, Lister):
    optional = ("GiB",)

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], list[Any]]:
        return COLUMNS, ROWS


class App:
    def __init__(self) -> None:
        self.stdout = io.StringIO()
        self.warnings: list[str] = []
        self.LOG = self
        self.NAME = "app"

    def warning(self, text: str, *more: object) -> None:
        self.warnings.append(text % more)


def shown(monkeypatch: pytest.MonkeyPatch, width: int, *words: str) -> App:
    monkeypatch.setenv("COLUMNS", str(width))
    app = App()
    command = Shown(app, argparse.Namespace())  # type: ignore[arg-type]
    command.run(command.get_parser("shown").parse_args(list(words)))
    return app


def test_a_command_fits_its_table_and_tells_what_it_leaves_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = shown(monkeypatch, 80)
    assert ONE not in app.stdout.getvalue()
    assert ONE[:8] in app.stdout.getvalue()
    assert app.warnings == ["left out to fit the terminal: GiB; --wide shows all"]


@pytest.mark.parametrize("words", [["--wide"], ["-f", "csv"], ["-f", "json"], ["-c", "Image"]])
def test_programs_and_who_asks_for_it_get_all(
    monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    app = shown(monkeypatch, 80, *words)
    assert ONE in app.stdout.getvalue()
    assert not app.warnings


class Named:
    """A Glance that has these images."""

    def __init__(self, *ids: str) -> None:
        self._images = [
            Image(
                id=one,
                name=f"name of {one}",
                status="active",
                owner="",
                disk_format="raw",
                container_format="bare",
                visibility="public",
            )
            for one in ids
        ]

    async def find_images(self, name: str) -> list[Image]:
        return [image for image in self._images if image.name == name]

    async def list_images(self) -> AsyncIterator[Image]:
        for image in self._images:
            yield image


async def test_a_short_id_is_taken_for_the_image() -> None:
    cloud = cast("OpenStackCloud", Named(ONE, LAST))
    assert await names.image_id(cloud, ONE[:8]) == ONE
    assert await names.image_id(cloud, ONE[:20].upper()) == ONE
    assert await names.image_id(cloud, f"name of {LAST}") == LAST
    with pytest.raises(NotFound):
        await names.image_id(cloud, ONE[:7])


async def test_a_short_id_of_two_images_lists_both() -> None:
    with pytest.raises(Misconfigured, match=f"{OTHER}, {ONE}"):
        await names.image_id(cast("OpenStackCloud", Named(ONE, OTHER)), ONE[:8])
