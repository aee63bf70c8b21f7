"""Measures of the code itself, a line each: how large it is, and how hard to find one's way in.

usage: python -m scripts.measure
"""

from __future__ import annotations

import ast
import asyncio
import json
import logging
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import structlog

from worker.testing.fake_cloud import FakeCloud
from worker.testing.rig import FAST, STORES, Rig

ROOT = Path(__file__).parents[1]
PRODUCT = ("worker", "handlers")
LONG_MODULE, LONG_LINE = 300, 100


def modules() -> Iterator[Path]:
    """Yield the product's modules, but not what it ships for tests."""
    for name in PRODUCT:
        for path in sorted((ROOT / name).rglob("*.py")):
            if "testing" not in path.relative_to(ROOT).parts:
                yield path


def docstrings() -> Iterator[str]:
    """Yield the docstrings of the product."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for module in modules():
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, documented) and (text := ast.get_docstring(node)):
                yield text


def complexities() -> Iterator[tuple[int, str]]:
    """Yield the complexity of each function that is a plan, or a part of one, by ruff's C901."""
    words = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--select",
        "C901",
        "--config",
        "lint.mccabe.max-complexity=0",
    ]
    words += ["--output-format", "json", "--exit-zero", "handlers"]
    found = json.loads(subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)
    for one in found:
        name = one["message"].split("`")[1]
        if name.lstrip("_") == "plan":
            yield (
                int(one["message"].rpartition("(")[2].split()[0]),
                f"{Path(one['filename']).relative_to(ROOT)}",
            )


async def way() -> tuple[int, int]:
    """Return through how many files one notification goes to its settled job, and how often the
    file changes.

    One image, one target, lanes in memory, the image cold.
    """
    files: list[str] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        file = frame.f_code.co_filename
        ours = file.startswith(tuple(str(ROOT / name) for name in PRODUCT))
        ours = ours and "/testing/" not in file
        if event == "call" and ours and (not files or files[-1] != file):
            files.append(file)

    cloud = FakeCloud(stores=dict(STORES))
    async with Rig(cloud, targets=(FAST,)) as rig:
        await rig.prewarm.prepare({})
        image = cloud.upload()
        heard: list[bytes] = []
        cloud.emit = heard.append
        cloud.announce("image.activate", image.id)
        await asyncio.sleep(0.1)
        sys.setprofile(note)
        rig.hear(heard[0])
        await rig.quiet()
        sys.setprofile(None)
        assert cloud.of(image.id), "it is warm"
    return len(set(files)), len(files)


def main() -> None:
    """Print all measures."""
    texts = [module.read_text().splitlines() for module in modules()]
    lines = [line for text in texts for line in text]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    files, changes = asyncio.run(way())
    highest = max(complexities())
    rows = [
        ("product lines (worker and handlers)", f"{len(lines):,}", "<= 12,500"),
        ("files on the way of one notification", f"{files}", "<= 14"),
        ("changes of file on that way", f"{changes}", "<= 150"),
        ("highest complexity of a plan", f"{highest[0]} ({highest[1]})", "<= 15"),
        (
            f"modules above {LONG_MODULE} lines",
            f"{sum(len(text) > LONG_MODULE for text in texts)}",
            "<= 3",
        ),
        (
            "ignore_imports in contracts",
            f"{sum(len(one.get('ignore_imports', ())) for one in contracts)}",
            "0",
        ),
        (
            'docstrings that begin with "What"',
            f"{sum(text.startswith('What') for text in docstrings())}",
            "0",
        ),
        (
            f"lines above {LONG_LINE} columns",
            f"{100 * sum(len(line) > LONG_LINE for line in lines) / len(lines):.1f} %",
            "<= 1 %",
        ),
    ]
    for name, value, goal in rows:
        print(f"{name:40} {value:>40}   goal {goal}")


if __name__ == "__main__":
    main()
