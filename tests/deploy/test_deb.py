"""The Debian package: made the same twice, as Debian wants it, and at work on booted Debians."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.broker.rabbitmq import RabbitMQ
from tests.deploy import debian
from tests.deploy.debian import CLOUD, ROOT, Machine, SmallCloud, until
from tests.worker_process import configuration, free_port

NAME = "image-volume-worker"
FOLDER = f"/etc/{NAME}"
QUEUE = "test-deb"
UV = Path(sys.executable).with_name("uv")
Built = Callable[..., Path]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The package of a suite, built once."""
    debian.needs("dpkg-deb")
    made: dict[str, Path] = {}

    def build(suite: str) -> Path:
        if suite not in made:
            made[suite] = package(tmp_path_factory.mktemp(suite), suite)
        return made[suite]

    return build


def package(folder: Path, suite: str, *, source: Path = ROOT) -> Path:
    words = ["-m", "scripts.package", "deb", "--suite", suite, "--out", str(folder)]
    debian.run(sys.executable, *words, cwd=source)
    (deb,) = folder.glob("*.deb")
    return deb


@pytest.fixture(params=["bookworm", *(["trixie", "noble"] if os.environ.get("LONG") else [])])
def machine(
    request: pytest.FixtureRequest, tmp_path: Path, built: Built
) -> Iterator[tuple[Machine, Path]]:
    """A Debian without the worker, and its package."""
    debian.needs("mmdebstrap", "systemd-nspawn", "setpriv", "nsenter")
    if request.param == "noble" and not debian.UBUNTU_KEYS.exists():
        pytest.skip("not installed: ubuntu-keyring (scripts/test installs it)")
    deb = built(request.param)
    with debian.booted(tmp_path, request.param) as machine:
        yield machine, deb


@pytest.fixture
def cloud() -> Iterator[SmallCloud]:
    made = SmallCloud()
    yield made
    made.close()


def install(machine: Machine, deb: Path) -> None:
    shutil.copy(deb, machine.tree / "srv")
    machine.do(
        "apt-get", "install", "--yes", "--quiet", "--no-install-recommends", f"/srv/{deb.name}",
        DEBIAN_FRONTEND="noninteractive",
    )  # fmt: skip


def newer(deb: Path, folder: Path, epoch: int = 1) -> Path:
    """The same package as a later version."""
    tree = folder / f"newer-{epoch}"
    debian.run("dpkg-deb", "--raw-extract", deb, tree)
    control = tree / "DEBIAN" / "control"
    control.write_text(
        re.sub(r"^Version: ", f"Version: {epoch}:", control.read_text(), flags=re.MULTILINE)
    )
    made = folder / f"newer-{epoch}.deb"
    debian.run("dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, made)
    return made


def state(machine: Machine) -> dict[str, str]:
    shown = machine.do(
        "systemctl", "show", "--property=ActiveState,UnitFileState,MainPID,StatusText", NAME
    )
    return dict(line.split("=", 1) for line in shown.splitlines())


def test_installed_started_upgraded_and_purged(
    machine: tuple[Machine, Path], cloud: SmallCloud, rabbitmq: RabbitMQ, tmp_path: Path
) -> None:
    debian_, deb = machine
    install(debian_, deb)
    # Nobody has configured it yet
    assert state(debian_).items() >= {"ActiveState": "inactive", "UnitFileState": "enabled"}.items()
    assert debian_.do("id", "--name", "--user", NAME).strip() == NAME
    # Whatever the distribution or the operator has on Python's path
    debian_.write("/srv/bad/structlog.py", "raise SystemExit(9)")
    debian_.write("/usr/lib/python3/dist-packages/tenacity.py", "raise SystemExit(9)")
    assert NAME in debian_.do(NAME, "--version", PYTHONPATH="/srv/bad")
    debian_.write(f"{FOLDER}/clouds.yaml", cloud.clouds_yaml)
    groups = {
        "notifications": {"transport_urls": rabbitmq.url, "queue": QUEUE},
        "cloud": {"name": CLOUD},
        "prewarm": {"targets": "fast"},
        "target:fast": {"volume_type": "ssd", "strategy": "cache"},
        "probes": {"bind": f"127.0.0.1:{free_port()}"},
    }
    debian_.write(f"{FOLDER}/{NAME}.conf", configuration(groups))
    debian_.do("systemd-tmpfiles", "--create", f"{NAME}.conf")
    try:
        debian_.do("systemctl", "start", NAME)
        until(lambda: state(debian_)["StatusText"] == "ready", what=lambda: state(debian_))
        shown = debian_.do("sh", "-c", f"{NAME} doctor --format json || true")
        verdicts = {row["Check"]: row["Result"] for row in json.loads(shown[shown.index("[") :])}
        assert verdicts["login"] == verdicts["notifications 0 queue"] == "ok", verdicts
        before = state(debian_)["MainPID"]
        # A file that the operator has changed stays
        debian_.write(f"/etc/default/{NAME}", "OS_LOG__LEVEL=debug\n")
        install(debian_, newer(deb, tmp_path))

        def is_new() -> bool:
            now = state(debian_)
            return now["StatusText"] == "ready" and now["MainPID"] not in (before, "0")

        until(is_new, what=lambda: state(debian_))
        assert (debian_.tree / "etc" / "default" / NAME).read_text() == "OS_LOG__LEVEL=debug\n"
        if os.environ.get("LONG"):
            upgraded_without_a_broker(debian_, newer(deb, tmp_path, epoch=2), groups)
        debian_.do("apt-get", "remove", "--yes", NAME)
        assert state(debian_)["ActiveState"] == "inactive"
        assert (debian_.tree / f"etc/{NAME}/{NAME}.conf").exists()
        assert not (debian_.tree / f"usr/lib/{NAME}").exists(), "something compiled is left"
    finally:
        rabbitmq.delete(QUEUE)
    debian_.do("apt-get", "purge", "--yes", NAME)
    left = debian_.do(
        "find", "/etc", "/usr", "/var/lib", "-xdev", "-name", f"*{NAME}*",
        "-not", "-path", "/var/lib/dpkg/*",
    )  # fmt: skip
    assert left == ""


def upgraded_without_a_broker(
    machine: Machine, deb: Path, groups: Mapping[str, Mapping[str, str]]
) -> None:
    """It takes the place of one that waits for its broker, and nobody waits with it."""
    away = {**groups["notifications"], "transport_urls": f"rabbit://a:b@127.0.0.1:{free_port()}/"}
    machine.write(f"{FOLDER}/{NAME}.conf", configuration({**groups, "notifications": away}))
    machine.do("systemctl", "restart", "--no-block", NAME)
    until(lambda: "intake-0: " in state(machine)["StatusText"], what=lambda: state(machine))
    before = state(machine)
    assert before["ActiveState"] == "activating"
    install(machine, deb)
    until(lambda: state(machine)["MainPID"] not in (before["MainPID"], "0"), what=lambda: before)
    assert "2:" in machine.do("dpkg-query", "--show", NAME)
    machine.write(f"{FOLDER}/{NAME}.conf", configuration(groups))
    machine.do("systemctl", "restart", NAME)
    until(lambda: state(machine)["StatusText"] == "ready", what=lambda: state(machine))


@pytest.mark.long
def test_it_is_the_same_whenever_and_wherever_it_is_built(built: Built, tmp_path: Path) -> None:
    source = tmp_path / "a checkout elsewhere"
    kept = shutil.ignore_patterns(".git", ".venv", "__pycache__", "dist", "build", ".*_cache")
    shutil.copytree(ROOT, source, ignore=kept)
    epoch = debian.run("git", "-C", ROOT, "log", "-1", "--format=%ct").strip()
    built("bookworm")
    folder = tmp_path / "out"
    words = ["-m", "scripts.package", "deb", "--suite", "bookworm", "--out", str(folder)]
    debian.run(
        "faketime", "2031-01-01 00:00:00", sys.executable, *words, cwd=source,
        env={
            "PATH": debian.PATH, "SOURCE_DATE_EPOCH": epoch, "HOME": str(tmp_path),
            # No index is asked in a year for which its certificate is not made
            "UV_OFFLINE": "1", "UV_CACHE_DIR": debian.run(UV, "cache", "dir").strip(),
        },
    )  # fmt: skip
    (again,) = folder.glob("*.deb")
    assert again.read_bytes() == built("bookworm").read_bytes()


@pytest.mark.long
def test_lintian(built: Built) -> None:
    debian.needs("lintian")
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error,warning", str(built("bookworm"))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
def test_rpm(tmp_path: Path) -> None:
    debian.needs("rpmbuild")
    words = ["-m", "scripts.package", "rpm", "--suite", "noble", "--out", str(tmp_path)]
    debian.run(sys.executable, *words, cwd=ROOT)
    (rpm,) = tmp_path.glob("*.rpm")
    listed = set(debian.run("rpm", "--query", "--list", "--package", rpm).splitlines())
    assert {
        f"/usr/bin/{NAME}",
        f"/usr/lib/systemd/system/{NAME}.service",
        f"/usr/share/man/man1/{NAME}.1.gz",
        f"/usr/lib/{NAME}/python/worker/__main__.py",
    } <= listed
    needs = debian.run("rpm", "--query", "--requires", "--package", rpm)
    assert "python(abi) = 3.12" in needs
    assert "oslo" not in needs
    debian.run("rpm", "--checksig", "--nosignature", rpm)
