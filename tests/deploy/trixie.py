"""Runs tests in a Debian 13, which has Python 3.13 and RabbitMQ 4: a tree that mmdebstrap makes,
entered by chroot.

usage: python -m tests.deploy.trixie PYTEST ARGUMENTS...

The tree, a copy of the checkout in it, and all that is mounted and started there live in namespaces
of their own for mounts and processes. They end with this command, however it ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from tests.deploy.debian import PATH, ROOT, archive, needs_root, run

SUITE = "trixie"
PACKAGES = ("python3", "python3-venv", "rabbitmq-server", "openssl")
PYTHON = "3.13"
WORK, VENV = "/checkout", "/venv"

ENTER = f"""
set -e
mount --types proc proc "$1/proc"
mount --rbind /dev "$1/dev"
mkdir -p "$1/{WORK}"
tree=$1
shift
# Not by exec: the first process of a namespace hears no SIGINT unless it asks for it, so that one is this shell
chroot "$tree" /usr/bin/env --chdir={WORK} "$@"
"""


def make(tree: Path) -> None:
    """Unpack the tree, and put our locked packages, ourselves and the checkout into it."""
    run(
        "tar",
        "--extract",
        f"--file={archive(SUITE, PACKAGES)}",
        f"--directory={tree}",
        "--numeric-owner",
    )
    run("chroot", tree, "python3", "-m", "venv", "--without-pip", VENV)
    # From outside, where the index and its certificates are known; all of them as wheels for that
    # Python
    packages = tree / VENV[1:] / "lib" / f"python{PYTHON}" / "site-packages"
    uv = [
        Path(sysconfig.get_path("scripts")) / "uv",
        "pip",
        "install",
        "--quiet",
        f"--target={packages}",
    ]
    python = [f"--python-version={PYTHON}", "--python-platform=x86_64-manylinux_2_28"]
    run(
        *uv,
        *python,
        "--only-binary=:all:",
        "--require-hashes",
        "-r",
        ROOT / "scripts" / "requirements-dev.txt",
    )
    run(*uv, *python, "--no-deps", ROOT)
    copy(tree / WORK[1:])


def copy(folder: Path) -> None:
    """Copy the files of the checkout as they are now, but for what git ignores."""
    listed = run(
        "git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"
    ).split("\0")
    for name in filter(None, listed):
        # One that was deleted is listed until that is committed
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def enter(tree: Path, *words: str) -> int:
    """Run a command in the tree; return its exit status."""
    passed = {name: os.environ[name] for name in ("CI", "LONG", "HISTORIES") if name in os.environ}
    variables = {"PATH": f"{VENV}/bin:{PATH}", "LANG": "C.UTF-8", "HOME": "/root", **passed}
    host = subprocess.Popen(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", ENTER, "bash", str(tree), "-i",
         *(f"{name}={value}" for name, value in variables.items()), *words]
    )  # fmt: skip
    try:
        return host.wait()
    except BaseException:
        # The first process of the namespace takes all others with it, and `unshare` ends once they
        # are gone
        for child in Path(f"/proc/{host.pid}/task/{host.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        host.wait()
        raise


def main(arguments: list[str]) -> int:
    """Run pytest in a new tree."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if faults := needs_root("mmdebstrap", "unshare", "git"):
        sys.exit(f"tests.deploy.trixie: {'; '.join(faults)}")
    # Those that pytest is to write are taken out of the tree afterwards
    report = next((word for word in arguments if word.startswith("--junit-xml=")), "").partition(
        "="
    )[2]
    inside = [
        f"--junit-xml={WORK}/report.xml" if word == f"--junit-xml={report}" else word
        for word in arguments
    ]
    with tempfile.TemporaryDirectory(prefix="image-volume-worker-trixie.") as folder:
        tree = Path(folder)
        make(tree)
        status = enter(tree, "python", "-m", "pytest", *inside)
        made = tree / WORK[1:] / "report.xml"
        if report and made.exists():
            shutil.copy(made, report)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
