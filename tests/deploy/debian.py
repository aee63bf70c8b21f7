"""What the tests of packages run on: a Debian made by mmdebstrap, booted by systemd-nspawn; and a
small cloud."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SUITE = "bookworm"
PACKAGES = ("systemd", "systemd-sysv", "dbus", "python3", "python3-venv", "iproute2")
UBUNTU_KEYS = Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg")
# Options of mmdebstrap and a mirror for what is no Debian
OTHERS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "noble": (
        ("--components=main,universe", f"--keyring={UBUNTU_KEYS}"),
        ("http://archive.ubuntu.com/ubuntu",),
    )
}
# To make one takes a minute or two, most of which it waits for a mirror
CACHE, LASTS = Path("/var/cache/image-volume-worker-tests"), 7 * 86_400.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
# Seconds that a machine may take to come up, to go down, and a command in it
PATIENCE = 120.0
IMAGE_ID = "5f3c0e9e-8a39-4d1f-9e0f-6d1b3f6f4c11"
CLOUD = "image-volume-worker"


def needs(*programs: str) -> None:
    """Skip a test that can't run here; in CI, which installs everything, that is a failure."""
    if faults := needs_root(*programs):
        why = "; ".join(faults)
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)


def needs_root(*programs: str) -> list[str]:
    """Why a machine can't be made here: programs that are not installed, or not being root."""
    missing = [program for program in programs if shutil.which(program) is None]
    faults = (
        [f"not installed: {', '.join(missing)} (scripts/test installs them)"] if missing else []
    )
    if os.geteuid() != 0:
        faults.append("only root can boot a machine or build an image")
    return faults


def run(*words: str | Path, timeout: float = 600.0, **options: Any) -> str:
    """What a command printed; an assertion with its output if it failed."""
    done = subprocess.run(
        [*map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )
    printed: str = done.stdout
    assert done.returncode == 0, (
        f"{' '.join(map(str, words))}: {done.returncode}\n{printed[-5000:]}"
    )
    return printed


def until(
    check: Callable[[], object], *, what: Callable[[], object], seconds: float = PATIENCE
) -> None:
    """Return when `check` is true; `what` tells how it is instead."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"still not: {what()}"
        time.sleep(0.2)


def kept(request: pytest.FixtureRequest, factory: pytest.TempPathFactory) -> Path:
    """A folder for what is made once a session, gone at its end."""
    folder = factory.getbasetemp() / "debian"
    if not folder.exists():
        folder.mkdir()
        request.session.addfinalizer(lambda: shutil.rmtree(folder, ignore_errors=True))
    return folder


def archive(suite: str = SUITE, names: Sequence[str] = PACKAGES) -> Path:
    """A small Debian with these packages, as a tar file; one of the last days if there is one."""
    packages = ",".join(names)
    key = hashlib.sha256(f"{suite} {packages}".encode()).hexdigest()[:12]
    made = CACHE / f"{suite}-{key}.tar"
    if not made.exists() or time.time() - made.stat().st_mtime > LASTS:
        CACHE.mkdir(parents=True, exist_ok=True)
        # Another run may be making one too
        part = made.with_suffix(f".{os.getpid()}")
        try:
            options = (
                "--quiet",
                "--variant=minbase",
                "--mode=root",
                "--format=tar",
                f"--include={packages}",
            )
            more, mirror = OTHERS.get(suite, ((), ()))
            run("mmdebstrap", *options, *more, suite, part, *mirror)
            part.rename(made)
        finally:
            part.unlink(missing_ok=True)
    return made


def wheels(folder: Path) -> Path:
    """The locked versions, what builds our wheel, and our wheel, for machines that reach no
    index."""
    made = folder / "wheels"
    if not made.exists():
        part = made.with_suffix(".part")
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        # Of Debian's Python, whichever runs the tests
        ours = ["--only-binary=:all:", "--python-version=3.11", f"--dest={part}"]
        for lock in ("requirements.txt", "requirements-build.txt"):
            run(
                *pip,
                "download",
                *ours,
                "--require-hashes",
                f"--requirement={ROOT / 'scripts' / lock}",
            )
        run(*pip, "wheel", "--no-deps", f"--wheel-dir={part}", ROOT)
        part.rename(made)
    return made


@contextmanager
def spawn(folder: Path) -> Iterator[list[str]]:
    """The words that start systemd-nspawn on a folder, to which more are added; at the end what it
    leaves goes.

    It would share control groups with any other of the same session, so this one gets its own.
    """
    name = f"test-{os.getpid()}-{secrets.token_hex(4)}"
    groups = [group / name for group in _control_groups()]
    for group in groups:
        group.mkdir()
    enter = "".join(f"echo $$ > {group}/cgroup.procs; " for group in groups)
    try:
        # Should the tests be killed it goes too
        yield ["sh", "-c", f'{enter} exec "$@"', "sh", "setpriv", "--pdeathsig=TERM",
               "systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--console=pipe", "--resolv-conf=off",
               "--timezone=off", f"--machine={name}", f"--directory={folder}"]  # fmt: skip
    finally:
        for group in groups:
            for place, _, _ in os.walk(group, topdown=False):
                os.rmdir(place)
        # It does not where /run is no file system of its own
        with suppress(OSError):
            Path(f"/run/systemd/nspawn/propagate/{name}").rmdir()


def _control_groups() -> Iterator[Path]:
    """Our own control group: the one of version 2, and where it is there the one that systemd has
    in version 1."""
    top = Path("/sys/fs/cgroup")
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, kind, path = line.split(":", 2)
        if number == "0":
            yield (top / "unified" if (top / "unified").exists() else top) / path.lstrip("/")
        elif kind == "name=systemd":
            yield top / "systemd" / path.lstrip("/")


class Machine:
    """A Debian that runs: its files under `tree`, commands by `do`. It shares the network of its
    host."""

    def __init__(self, tree: Path, log: Path) -> None:
        self.tree = tree
        self._log = log
        self._init = 0

    @contextmanager
    def running(self) -> Iterator[Machine]:
        """Booted; powered off at the end, and nothing of it left."""
        with spawn(self.tree) as words, self._log.open("wb") as log:
            host = subprocess.Popen(
                [*words, "--boot"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            try:
                until(lambda: self._find_init(host), what=self._log.read_text)
                until(self._is_up, what=self._log.read_text)
                yield self
            finally:
                end(host, self._init)

    def do(self, *words: str, **environment: str) -> str:
        """What a command in it printed; an assertion if it failed."""
        return run(*self._inside(environment), *words, timeout=300)

    def status(self, *words: str) -> int:
        """The exit status of a command in it."""
        done = subprocess.run(
            [*self._inside({}), *words], capture_output=True, timeout=300, check=False
        )
        return done.returncode

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """A file in it."""
        file = self.tree / path.removeprefix("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def _inside(self, environment: Mapping[str, str]) -> list[str]:
        variables = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": "/root", **environment}
        clean = ["/usr/bin/env", "-i", *(f"{name}={value}" for name, value in variables.items())]
        return ["nsenter", f"--target={self._init}", "--all", *clean]

    def _find_init(self, host: subprocess.Popen[bytes]) -> bool:
        assert host.poll() is None, self._log.read_text()
        for child in Path(f"/proc/{host.pid}/task/{host.pid}/children").read_text().split():
            if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                self._init = int(child)
        return self._init != 0

    def _is_up(self) -> bool:
        done = subprocess.run(
            [*self._inside({}), "systemctl", "is-system-running"],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip() in ("running", "degraded")


def end(host: subprocess.Popen[bytes], init: int = 0) -> None:
    """End a systemd-nspawn, in order if it can; all processes in it go with the first of them."""
    host.terminate()
    try:
        host.wait(PATIENCE / 4)
    except subprocess.TimeoutExpired:
        if init:
            os.kill(init, signal.SIGKILL)
        host.kill()
        host.wait()


@contextmanager
def booted(folder: Path, suite: str = SUITE) -> Iterator[Machine]:
    """A machine that has just been installed."""
    tree = folder / "tree"
    tree.mkdir()
    try:
        run(
            "tar", "--extract", f"--file={archive(suite)}", f"--directory={tree}", "--numeric-owner"
        )
        with Machine(tree, folder / "console.log").running() as machine:
            yield machine
    finally:
        shutil.rmtree(tree)


class SmallCloud:
    """As much of Keystone, Glance and Cinder as a worker asks for. One image, and no room for a
    volume.

    `delay` is how long the image itself takes to be shown, in seconds.
    """

    def __init__(self) -> None:
        outer = self
        self.delay = 0.0

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = self.path.partition("?")[0].rstrip("/")
                if path.endswith(f"/images/{IMAGE_ID}"):
                    time.sleep(outer.delay)
                self._answer(outer.answers(path))

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.path.endswith("/auth/tokens"):
                    self._answer((201, outer.token()))
                else:
                    self._answer((413, {"overLimit": {"message": "VolumeLimitExceeded"}}))

            def _answer(self, answer: tuple[int, object]) -> None:
                status, body = answer
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("X-Subject-Token", "token")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the name is the standard library's
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def close(self) -> None:
        """Be gone."""
        self._server.shutdown()
        self._server.server_close()

    @property
    def clouds_yaml(self) -> str:
        """A login, as clouds.yaml has it."""
        names = {"username": "worker", "password": "secret", "project_name": "internal"}
        domains = {"user_domain_name": "Default", "project_domain_name": "Default"}
        # YAML knows JSON
        return json.dumps(
            {
                "clouds": {
                    CLOUD: {"auth": {"auth_url": f"{self.url}/identity/v3", **names, **domains}}
                }
            }
        )

    def token(self) -> object:
        """What Keystone says of our login."""
        ends = {"identity": "identity/v3", "image": "image", "block-storage": "volume/v3"}
        catalog = [
            {"type": kind, "name": kind, "id": kind, "endpoints": [
                {"id": kind, "interface": "public", "region": "one", "region_id": "one", "url": f"{self.url}/{path}"}
            ]}
            for kind, path in ends.items()
        ]  # fmt: skip
        domain = {"id": "default", "name": "Default"}
        now = datetime.now(UTC)
        return {"token": {
            "methods": ["password"], "user": {"id": "u", "name": "worker", "domain": domain},
            "project": {"id": "p" * 32, "name": "internal", "domain": domain}, "catalog": catalog,
            "roles": [{"id": name, "name": name} for name in ("admin", "service")],
            "issued_at": now.isoformat(), "expires_at": (now + timedelta(days=1)).isoformat(),
        }}  # fmt: skip

    def answers(self, path: str) -> tuple[int, object]:
        """What is answered to a GET."""
        image = {
            "id": IMAGE_ID, "status": "active", "owner": "p" * 32, "disk_format": "raw", "container_format": "bare",
            "visibility": "public", "name": "debian", "size": 1 << 30, "min_disk": 0, "stores": "file",
            "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
        }  # fmt: skip
        none = {"limit": 10, "in_use": 0, "reserved": 0}
        pool = {"name": "h@ssd#ssd", "capabilities": {
            "volume_backend_name": "ssd", "free_capacity_gb": 90, "total_capacity_gb": 100, "backend_state": "up",
        }}  # fmt: skip
        versions = {"versions": [
            {"id": "v2.17", "status": "CURRENT", "links": [{"rel": "self", "href": f"{self.url}/image/v2/"}]}
        ]}  # fmt: skip
        volume = {
            "id": "v3.0", "status": "CURRENT", "version": "3.71", "min_version": "3.0",
            "links": [{"rel": "self", "href": f"{self.url}/volume/v3/"}],
        }  # fmt: skip
        identity = {
            "id": "v3.14",
            "status": "stable",
            "links": [{"rel": "self", "href": f"{self.url}/identity/v3/"}],
        }
        known: dict[str, object] = {
            "/identity": {"versions": {"values": [identity]}},
            "/identity/v3": {"version": identity},
            "/image": versions,
            "/image/versions": versions,
            "/image/v2/images": {"images": [image]},
            f"/image/v2/images/{IMAGE_ID}": image,
            f"/image/v2/images/{IMAGE_ID}/locations": [],
            "/image/v2/info/stores/detail": {"stores": [{"id": "file", "type": "file", "default": True}]},
            "/image/v2/info/import": {"import-methods": {"value": ["copy-image"]}},
            "/volume": {"versions": [volume]},
            "/volume/v3": {"versions": [volume]},
            "/volume/v3/types": {"volume_types": [
                {"id": name, "name": name, "extra_specs": {"volume_backend_name": "ssd"}} for name in ("ssd", "hdd")
            ]},
            "/volume/v3/types/ssd/encryption": {},
            "/volume/v3/types/hdd/encryption": {},
            "/volume/v3/volumes": {"volumes": []},
            "/volume/v3/volumes/detail": {"volumes": []},
            "/volume/v3/scheduler-stats/get_pools": {"pools": [pool]},
            "/volume/v3/os-services": {"services": [
                {"binary": "cinder-volume", "host": "h@ssd", "state": "up", "status": "enabled", "zone": "nova"}
            ]},
            "/volume/v3/os-availability-zone": {
                "availabilityZoneInfo": [{"zoneName": "nova", "zoneState": {"available": True}}]
            },
            f"/volume/v3/os-quota-sets/{'p' * 32}": {"quota_set": {"volumes": none, "gigabytes": none}},
        }  # fmt: skip
        if path in known:
            return 200, known[path]
        return 404, {"itemNotFound": {"message": f"there is no {path}"}}
