"""The previous version, as processes beside today's: its wheel, with the libraries of today."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[2]
WHEEL = next((ROOT / "tests/fixtures/previous").glob("*.whl"))
"""0.1.0 as it first worked end to end: `uv build --wheel` of the commit 47c0c70."""

# A plug-in of today imports these from worker.core, where they lie now
_NAMES = """
import sys
from worker import cloud, errors, handler, job, notification, outcome
for module in (cloud, errors, handler, job, notification, outcome):
    sys.modules[module.__name__.replace("worker.", "worker.core.")] = module
"""


def install(folder: Path) -> Path:
    """Unpack the previous version into a folder, so that plug-ins of today run in it too."""
    with ZipFile(WHEEL) as wheel:
        wheel.extractall(folder)
    core = folder / "worker" / "core"
    core.mkdir()
    (core / "__init__.py").write_text(_NAMES)
    return folder


def environment(folder: Path, today: Mapping[str, str]) -> Mapping[str, str]:
    """Return the environment of a process that is to run the version in `folder`; `today`: that of
    today's version."""
    path = today.get("PYTHONPATH", str(ROOT))
    # Python would look into the working directory first, where today's version lies
    return {**today, "PYTHONPATH": f"{folder}{os.pathsep}{path}", "PYTHONSAFEPATH": "1"}
