"""The package as it is built: it installs where nothing is, and has all that the program needs."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")
COMMANDS = (
    "run", "resync", "replay", "record", "status", "explain", "doctor",
    "dead-letters list", "dead-letters show", "dead-letters replay", "dead-letters drop",
)  # fmt: skip


def ran(*words: str | Path) -> str:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the wheel and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    ran(UV, "build", "--quiet", "--out-dir", folder, ROOT)
    return folder


@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_it_installs_into_an_empty_environment(built: Path, tmp_path: Path, kind: str) -> None:
    (package,) = built.glob(kind)
    python = tmp_path / "venv" / "bin" / "python"
    ran(UV, "venv", "--quiet", "--python", sys.executable, tmp_path / "venv")
    ran(
        UV,
        "pip",
        "install",
        "--quiet",
        "--python",
        python,
        "-r",
        ROOT / "scripts" / "requirements.txt",
    )
    ran(UV, "pip", "install", "--quiet", "--python", python, "--no-deps", package)
    ran(UV, "pip", "check", "--python", python)
    program = python.with_name("image-volume-worker")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert ran(program, "--version").strip() == f"image-volume-worker {version}"
    listed = ran(program, "help")
    for command in COMMANDS:
        assert f"\n  {command} " in listed, f"{command} is not there"
        assert "usage: image-volume-worker" in ran(program, "help", *command.split())
    page = (
        "from worker.observe.assets import FILES, asset; "
        "print(min(len(asset(path).body) for path in FILES))"
    )
    assert int(ran(python, "-c", page)) > 500


def test_what_is_in_them(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "worker/observe/page/page.html",
        "worker/observe/page/page.js",
        "worker/py.typed",
        "handlers/py.typed",
    } <= names
    assert not [name for name in names if name.startswith(("tests/", "scripts/"))]
    with tarfile.open(sdist) as packed:
        inside = {name.partition("/")[2] for name in packed.getnames()}
    for needed in (
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "config/image-volume-worker.conf.sample",
    ):
        assert needed in inside
    assert not [name for name in inside if name.startswith((".venv", ".ci"))]
