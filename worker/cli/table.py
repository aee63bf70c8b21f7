"""Tables for people: they fit the terminal, and name what they leave out."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from cliff.columns import FormattableColumn
from wcwidth import wcswidth

from worker.cli.names import is_id
from worker.core.plain import plain

SHORT = 8
"""Digits of an id that tell it from others; `worker.cli.names` takes them for an image."""
NARROWEST = 20
"""Columns of a terminal that a cell of text is folded to, at least."""
BORDER = 3
"""Columns of a terminal between two cells."""

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Fit:
    """A table as it fits, and the names of the columns that have to be left out for that."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    left_out: tuple[str, ...] = ()


def fit(
    columns: Sequence[str], rows: Iterable[Row], *, width: int, optional: Sequence[str] = ()
) -> Fit:
    """Return the table no wider than `width` terminal columns, if that can be done; 0 for any width.

    Columns without any content are left out. If it is too wide, ids become short, then `optional`
    columns are left out, the first one first, then texts are folded between words. Pure.
    """
    table = _Cells(list(columns), [list(row) for row in rows])
    for name in columns:
        if table.rows and not any(_text(row[table.columns.index(name)]) for row in table.rows):
            table.drop(name)
    if not width or table.width <= width:
        return table.done(())
    table.shorten_ids()
    left_out: list[str] = []
    for name in optional:
        if table.width > width and name in table.columns:
            table.drop(name)
            left_out.append(name)
    if table.width > width:
        table.fold(width)
    return table.done(left_out)


class Table:
    """Mixed into a command that lists: what strangers have written steers no terminal, in whatever
    format; a table for a person fits the terminal."""

    optional: ClassVar[tuple[str, ...]] = ()
    """Columns that a narrow terminal can do without, the first to go first."""
    app: Any

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The options of the command, and --wide."""
        parser: argparse.ArgumentParser = super().get_parser(prog_name)  # type: ignore[misc]
        parser.add_argument(
            "--wide",
            action="store_true",
            help="Show all columns and whole ids, though the terminal is narrower.",
        )
        return parser

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Any, data: Any) -> int:
        """The table, of plain texts."""
        rows = [tuple(plain(one) if isinstance(one, str) else one for one in row) for row in data]
        columns = tuple(column_names)
        if parsed_args.formatter == "table" and not (parsed_args.wide or parsed_args.columns):
            fitted = fit(columns, rows, width=terminal_width(), optional=self.optional)
            columns, rows = fitted.columns, list(fitted.rows)
            if fitted.left_out:
                self.app.LOG.warning(
                    "left out to fit the terminal: %s; --wide shows all", ", ".join(fitted.left_out)
                )
        status: int = super().produce_output(parsed_args, columns, rows)  # type: ignore[misc]
        return status


def terminal_width() -> int:
    """Return the columns of the terminal, by COLUMNS or as it says; 0 if the output is none."""
    return shutil.get_terminal_size((0, 0)).columns


@dataclass
class _Cells:
    columns: list[str]
    rows: list[list[Any]]

    @property
    def widths(self) -> list[int]:
        """Columns of a terminal that each column takes."""
        return [
            max(_width(name), *(_width(_text(row[number])) for row in self.rows), 0)
            for number, name in enumerate(self.columns)
        ]

    @property
    def width(self) -> int:
        return sum(self.widths) + BORDER * len(self.columns) + 1

    def drop(self, name: str) -> None:
        number = self.columns.index(name)
        for row in (self.columns, *self.rows):
            del row[number]

    def shorten_ids(self) -> None:
        for row in self.rows:
            row[:] = [one[:SHORT] if isinstance(one, str) and is_id(one) else one for one in row]

    def fold(self, width: int) -> None:
        """Fold columns of text, the widest first, to what the others leave."""
        widths = self.widths
        texts = [
            number
            for number, one in enumerate(widths)
            if one > NARROWEST
            and any(isinstance(row[number], str) and " " in row[number] for row in self.rows)
        ]
        room = width - 1 - BORDER * len(widths)
        room -= sum(one for number, one in enumerate(widths) if number not in texts)
        for left, number in enumerate(sorted(texts, key=lambda one: widths[one])):
            share = max(NARROWEST, min(widths[number], room // (len(texts) - left)))
            room -= share
            for row in self.rows:
                if isinstance(row[number], str):
                    row[number] = _folded(row[number], share)

    def done(self, left_out: Sequence[str]) -> Fit:
        return Fit(tuple(self.columns), tuple(tuple(row) for row in self.rows), tuple(left_out))


def _text(cell: Any) -> str:
    """Return a cell as the table shows it."""
    shown = cell.human_readable() if isinstance(cell, FormattableColumn) else cell
    return "" if shown is None else str(shown)


def _width(text: str) -> int:
    # -1 for control characters, which `plain` has replaced
    return max(wcswidth(text), 0)


def _folded(text: str, width: int) -> str:
    # An id, a path or an option stays whole
    return textwrap.fill(text, width, break_on_hyphens=False, break_long_words=False)
