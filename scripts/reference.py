"""Writes docs/reference.md: every command with its arguments, from the program's own parsers.

python -m scripts.reference [--check]

With --check it only says whether the page is current, by its exit status too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

from cliff.command import Command

from worker.cli import Worker

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"
HEAD = """# Commands and their options

Written by `python -m scripts.reference` from what `--help` says; [commands.md](commands.md) shows them at work.

    image-volume-worker [--config-file F]... [--config-dir D] COMMAND

| option | |
|---|---|
"""
TABLES = """
`status`, `dead-letters list` and the others that print a table or a record take the formatter options of every
OpenStack command as well: `-f table|json|yaml|csv|value`, `-c COLUMN`, `--sort-column COLUMN`, `--noindent`,
`--max-width N`.
"""


def commands() -> Iterator[tuple[str, type[Command]]]:
    """Every command by its words, in the order of the alphabet."""
    for entry in sorted(
        entry_points(group="image_volume_worker.commands"), key=lambda entry: entry.name
    ):
        yield entry.name.replace("_", " "), entry.load()


def own_actions(command: type[Command], app: Worker) -> tuple[str, list[argparse.Action]]:
    """What a command is for, and the arguments that it adds to those which cliff gives to all of
    its kind."""
    kind = next(base for base in command.__mro__ if base.__module__.startswith("cliff."))
    plain = type("Plain", (kind,), {"take_action": None, "__doc__": ""})(app, None).get_parser("x")
    parser = command(app, None).get_parser("x")
    common = {tuple(action.option_strings) for action in plain._actions if action.option_strings}
    mine = [
        action
        for action in parser._actions
        if action.help != argparse.SUPPRESS and tuple(action.option_strings) not in common
    ]
    return parser.description or "", mine


def row(action: argparse.Action) -> str:
    """One argument as a row of a table."""
    value = (
        "|".join(map(str, action.choices))
        if action.choices
        else action.metavar or action.dest.upper()
    )
    shown = "" if action.nargs == 0 else str(value).replace("|", "\\|")
    names = [f"`{f'{name} {shown}'.strip()}`" for name in action.option_strings or [""]]
    text = " ".join(((action.help or "") % {**vars(action), "prog": Worker.NAME}).split())
    return f"| {', '.join(names)} | {text} |"


def page() -> str:
    """The whole page."""
    app = Worker()
    shared = [
        action
        for action in app.parser._actions
        if action.option_strings and action.help != argparse.SUPPRESS
    ]
    text = HEAD + "".join(f"{row(action)}\n" for action in shared) + TABLES
    for name, command in commands():
        about, actions = own_actions(command, app)
        text += f"\n## {name}\n\n{' '.join(about.split())}\n"
        if actions:
            text += "\n| argument | |\n|---|---|\n" + "".join(
                f"{row(action)}\n" for action in actions
            )
    return text


def main(words: list[str]) -> int:
    """Write the page, or tell that it is not current."""
    text = page()
    if words != ["--check"]:
        PAGE.write_text(text)
        return 0
    if PAGE.exists() and PAGE.read_text() == text:
        return 0
    print(
        "reference: docs/reference.md is not current; run python -m scripts.reference",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
