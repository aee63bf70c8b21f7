"""The image: built of the Containerfile on a Debian, and run as docs/container.md says, but by
systemd-nspawn."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.broker.rabbitmq import RabbitMQ
from tests.deploy import debian
from tests.deploy.debian import CLOUD, ROOT, SmallCloud, run, until
from tests.worker_process import configuration, free_port

BASE = "localhost/base"
IMAGE = "localhost/image-volume-worker"
HOME = "opt/image-volume-worker"
SAMPLE = "etc/image-volume-worker/image-volume-worker.conf.sample"
# What the image may add to its base, in MB
ADDED = 160
COMPILERS = ("cc", "gcc", "g++", "c++", "ld", "as", "make", "cargo", "go")
QUEUE = "test-container"


@dataclass(frozen=True)
class Built:
    """The image: its configuration, its files and those of its base."""

    config: dict[str, Any]
    files: Path
    base: Path


class Store:
    """Images in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        places = [f"--root={folder / 'images'}", f"--runroot={folder / 'run'}"]
        self._buildah = ["buildah", *places, "--storage-driver=overlay"]

    def do(self, *words: str | Path) -> str:
        """What buildah printed."""
        return run(*self._buildah, *words).strip()

    def files(self, image: str) -> Path:
        """A folder with the files of an image."""
        return Path(self.do("mount", self.do("from", "--pull-never", image)))

    def close(self) -> None:
        """Remove all of it."""
        for words in (["umount", "--all"], ["rm", "--all"], ["rmi", "--all", "--force"]):
            subprocess.run([*self._buildah, *words], capture_output=True, check=False)
        mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for place in reversed([place for place in mounted if place.startswith(f"{self._folder}/")]):
            run("umount", place)
        shutil.rmtree(self._folder)


@pytest.fixture(scope="module")
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Built]:
    debian.needs("mmdebstrap", "systemd-nspawn", "buildah")
    folder = debian.kept(request, tmp_path_factory)
    archive, wheels = debian.archive(), debian.wheels(folder)
    store = Store(tmp_path_factory.mktemp("store"))
    try:
        scratch = store.do("from", "scratch")
        store.do("add", "--quiet", scratch, archive, "/")
        store.do("commit", "--quiet", "--rm", scratch, BASE)
        offline = [
            "--build-arg=PIP_NO_INDEX=1",
            "--build-arg=PIP_FIND_LINKS=/wheels",
            f"--volume={wheels}:/wheels:ro",
        ]
        store.do("build", "--format=docker", "--isolation=chroot", "--pull-never", f"--build-arg=BASE={BASE}", *offline,
                 f"--tag={IMAGE}", ROOT)  # fmt: skip
        config = json.loads(store.do("inspect", "--type=image", IMAGE))["Docker"]["config"]
        yield Built(config, store.files(IMAGE), store.files(BASE))
    finally:
        store.close()


@pytest.fixture(scope="module")
def cloud() -> Iterator[SmallCloud]:
    made = SmallCloud()
    yield made
    made.close()


class Container:
    """Runs the image: read-only but for /tmp, as its own user, without any capability, on the
    network of the host."""

    def __init__(self, built: Built, folder: Path, cloud: SmallCloud, url: str) -> None:
        self._built = built
        self._folder = folder
        self.port = free_port()
        self.output = folder / "output"
        user, _, group = built.config["User"].partition(":")
        # systemd-nspawn knows users by name only
        (folder / "passwd").write_text(f"worker:x:{user}:{group}::/tmp:/nonexistent\n")
        (folder / "group").write_text(f"worker:x:{group}:\n")
        self._config = folder / "config"
        self._config.mkdir()
        self.configure(url)
        (self._config / "clouds.yaml").write_text(cloud.clouds_yaml)

    def configure(self, url: str) -> None:
        groups: dict[str, dict[str, object]] = {
            "notifications": {"transport_urls": url, "queue": QUEUE},
            "cloud": {"name": CLOUD},
            "prewarm": {"targets": "fast"},
            "target:fast": {"volume_type": "ssd"},
        }
        (self._config / "image-volume-worker.conf").write_text(configuration(groups))

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The image's program with these words, to its end."""
        return self.execute(*self._built.config["Entrypoint"], *words)

    def execute(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A program of the image, to its end."""
        with debian.spawn(self._built.files) as spawn:
            command = [*spawn, *self._options(), *words]
            return subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """What the image does by default; ended if it still runs."""
        config = self._built.config
        with debian.spawn(self._built.files) as spawn, self.output.open("wb") as output:
            command = [*spawn, *self._options(), *config["Entrypoint"], *config["Cmd"]]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
            try:
                yield process
            finally:
                debian.end(process)

    def _options(self) -> list[str]:
        config = self._built.config
        variables = [*config["Env"], f"OS_PROBES__BIND=127.0.0.1:{self.port}"]
        variables += ["OS_CLIENT_CONFIG_FILE=/etc/image-volume-worker/clouds.yaml"]
        binds = {self._folder / "passwd": "/etc/passwd", self._folder / "group": "/etc/group"}
        binds[self._config] = "/etc/image-volume-worker"
        return [
            "--read-only", "--tmpfs=/tmp:mode=1777", "--user=worker", "--drop-capability=all",
            "--no-new-privileges=yes", f"--kill-signal={config['StopSignal']}", f"--chdir={config['WorkingDir']}",
            *(f"--setenv={variable}" for variable in variables),
            *(f"--bind-ro={here}:{there}" for here, there in binds.items()),
        ]  # fmt: skip

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}/readyz", timeout=5
            ) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@pytest.fixture
def container(
    built: Built, tmp_path: Path, cloud: SmallCloud, rabbitmq: RabbitMQ
) -> Iterator[Container]:
    yield Container(built, tmp_path, cloud, rabbitmq.url)
    rabbitmq.delete(QUEUE)


def names(root: Path) -> set[str]:
    """All files below a folder."""
    return {
        str(Path(folder, file).relative_to(root))
        for folder, _, files in os.walk(root)
        for file in files
    }


def megabytes(root: Path) -> float:
    """What they are together."""
    return sum((root / name).lstat().st_size for name in names(root)) / 1e6


def test_there_is_nothing_in_it_but_the_base_and_the_worker(built: Built) -> None:
    inside, below = names(built.files), names(built.base)
    added = inside - below
    assert {name for name in added if not name.startswith(f"{HOME}/")} == {SAMPLE}
    assert below <= inside
    folders = ("usr/bin", "usr/local/bin", "bin", f"{HOME}/bin")
    assert [
        name
        for name in inside
        if any(name == f"{folder}/{one}" for folder in folders for one in COMPILERS)
    ] == []
    assert not [
        name for name in added if "/pip/" in name or "/tests/deploy/" in name or "/.cache/" in name
    ]
    for cache in ("root/.cache", "var/cache/apt/archives", "var/lib/apt/lists"):
        assert not [
            name for name in inside if name.startswith(f"{cache}/") and not name.endswith("/lock")
        ], cache


def test_its_size(built: Built) -> None:
    size, base = megabytes(built.files), megabytes(built.base)
    print(f"{size:.0f} MB, {size - base:.0f} MB more than its base")  # noqa: T201  pytest -s shows it
    assert 0 < size - base < ADDED


def test_what_it_says_of_itself(built: Built) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    labels = {name.rpartition(".")[2]: value for name, value in built.config["Labels"].items()}
    assert labels["version"] == project["version"], "ARG VERSION of the Containerfile"
    assert (labels["title"], labels["licenses"]) == (project["name"], project["license"])
    user, _, group = built.config["User"].partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert built.config["StopSignal"] == "SIGTERM"
    assert built.config["Entrypoint"] == ["image-volume-worker"]
    assert built.config["Cmd"] == ["run"]


def test_it_may_do_nothing(container: Container) -> None:
    done = container.execute(
        "sh", "-c", "cat /proc/self/status; touch /opt/x || touch /etc/x || touch /tmp/x && echo ok"
    )
    lines = dict(line.split(":\t", 1) for line in done.stdout.splitlines() if ":\t" in line)
    assert lines["Uid"].split() == ["65532"] * 4
    assert [lines[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")] == ["0" * 16] * 4
    assert done.stdout.endswith("ok\n")
    assert done.stderr.count("Read-only file system") == 2


def test_help_and_version(container: Container) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert container.run("--version").stdout.strip() == f"image-volume-worker {version}"
    helped = container.run("--help")
    assert helped.returncode == 0
    assert "usage: image-volume-worker" in helped.stdout


def test_doctor_says_what_works_and_what_does_not(container: Container) -> None:
    well = container.run("doctor", "-f", "json")
    checks = {row["Check"]: row["Result"] for row in json.loads(well.stdout)}
    assert (
        well.returncode,
        checks["notifications 0"],
        checks["cinder"],
        checks["target fast"],
    ) == (
        0,
        "ok",
        "ok",
        "ok",
    )
    container.configure("rabbit://worker:secret@127.0.0.1:1/")
    sick = container.run("doctor", "-f", "json")
    checks = {row["Check"]: row["Result"] for row in json.loads(sick.stdout)}
    assert (sick.returncode, checks["notifications 0"], checks["cinder"]) == (3, "fail", "ok")


def test_it_gets_ready_is_healthy_and_drains(container: Container, built: Built) -> None:
    kind, *check = built.config["Healthcheck"]["Test"]
    assert kind == "CMD"
    assert container.execute(*check).returncode != 0, "nobody is there yet"
    with container.running() as process:
        until(
            lambda: container.ready() or process.poll() is not None, what=container.output.read_text
        )
        assert process.poll() is None, container.output.read_text()
        assert container.execute(*check).returncode == 0
        began = time.monotonic()
        process.terminate()
        assert process.wait(60) == 0
        assert time.monotonic() - began < 30
    events = [
        json.loads(line)["event"]
        for line in container.output.read_text().splitlines()
        if line.startswith("{")
    ]
    assert events[0] == "started"
    assert events[-1] == "stopped"
    assert container.execute(*check).returncode != 0, "it has gone"
