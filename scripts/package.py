"""Builds the packages that operators install.

scripts/package [deb] [rpm] [--suite bookworm|trixie|noble] [--out FOLDER]

deb: one for each suite, as compiled libraries are made for one version of Python. rpm: of the same
tree as the newest deb. The libraries are the locked ones, in a folder of their own
(/usr/lib/image-volume-worker), so they never meet those of the distribution. What one commit gives
is the same on every day and in every folder. Needs dpkg-deb, for rpm also rpmbuild; not root.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAME = "image-volume-worker"
HOME = f"usr/lib/{NAME}"
BUILT_BY = Path(sys.executable).parent
"""The folder of uv and Sphinx."""
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
LIBC = "2.28"
"""The oldest glibc that the wheels of the lock are made for (manylinux_2_28)."""
MAINTAINER = os.environ.get("MAINTAINER", "the authors <authors@image-volume-worker.invalid>")
"""Name and address of whoever builds it for others."""
FILES: Mapping[str, tuple[str, ...]] = {
    f"usr/lib/systemd/system/{NAME}.service": ("config", "systemd", f"{NAME}.service"),
    f"usr/lib/sysusers.d/{NAME}.conf": ("config", "systemd", "sysusers.conf"),
    f"usr/lib/tmpfiles.d/{NAME}.conf": ("config", "systemd", "tmpfiles.conf"),
    f"etc/default/{NAME}": ("config", "systemd", f"{NAME}.default"),
    f"usr/share/doc/{NAME}/copyright": ("config", "debian", "copyright"),
    f"usr/share/lintian/overrides/{NAME}": ("config", "debian", "lintian-overrides"),
    f"usr/share/doc/{NAME}/examples/{NAME}.conf": ("config", f"{NAME}.conf.sample"),
    f"usr/share/doc/{NAME}/examples/credentials.conf": ("config", "systemd", "credentials.conf"),
    f"usr/share/doc/{NAME}/examples/prometheus-rules.yaml": ("config", "prometheus", "rules.yaml"),
    f"usr/share/doc/{NAME}/examples/grafana-dashboard.json": (
        "config",
        "grafana",
        "dashboard.json",
    ),
    f"usr/share/doc/{NAME}/examples/policy-cinder.yaml": ("config", "policy", "cinder.yaml"),
    f"usr/share/doc/{NAME}/examples/policy-glance.yaml": ("config", "policy", "glance.yaml"),
}
"""Files of the packages, and what they are copies of."""
OF_THE_INSTALLER = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json")
"""Files that tell how a library was installed, and where."""


@dataclass(frozen=True, slots=True)
class Suite:
    """A release of a distribution: the part of the version that names it, and its Python."""

    tag: str
    python: str

    @property
    def next_python(self) -> str:
        major, minor = self.python.split(".")
        return f"{major}.{int(minor) + 1}"


SUITES = {
    "bookworm": Suite("deb12", "3.11"),
    "trixie": Suite("deb13", "3.13"),
    "noble": Suite("ubuntu24.04", "3.12"),
}


def main() -> int:
    """Build what is asked for; the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/package", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("kind", nargs="*", help="deb, rpm; both if left out")
    parser.add_argument(
        "--suite", action="append", choices=SUITES, help="Only this one; repeatable."
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="Folder of the packages.")
    options = parser.parse_args()
    kinds = options.kind or ["deb", "rpm"]
    if unknown := set(kinds) - {"deb", "rpm"}:
        parser.error(f"no kind of package: {', '.join(sorted(unknown))}")
    options.out.mkdir(parents=True, exist_ok=True)
    suites = options.suite or list(SUITES)
    with tempfile.TemporaryDirectory(prefix=f"{NAME}-package-") as folder:
        for name in suites:
            tree = Path(folder) / name
            stage(tree, SUITES[name])
            if "deb" in kinds:
                print(deb(tree, SUITES[name], options.out))
            if "rpm" in kinds and name == suites[-1]:
                print(rpm(tree, SUITES[name], options.out))
    return 0


def version() -> str:
    """Return the version of this checkout."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return str(project["version"])


def epoch() -> int:
    """Return the time that all files get: of the commit, or as SOURCE_DATE_EPOCH says."""
    if said := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(said)
    git = subprocess.run(
        ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return int(git.stdout) if git.returncode == 0 and git.stdout.strip() else int(time.time())


def run(*words: str | Path, **environment: str) -> str:
    """Return what a command printed; it may not fail."""
    done = subprocess.run(
        [*map(str, words)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch()), **environment}, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"package: {' '.join(map(str, words))}: {done.returncode}\n{done.stdout}")
    return done.stdout


def stage(tree: Path, suite: Suite) -> None:
    """Lay out everything that is installed."""
    for place, source in FILES.items():
        copy(ROOT.joinpath(*source), tree / place)

    # It may hold passwords, and systemd reads it as root
    (tree / "etc" / "default" / NAME).chmod(0o600)
    copy(ROOT / "config" / "debian" / "launcher", tree / HOME / NAME, mode=0o755)
    program = tree / "usr" / "bin" / NAME
    program.parent.mkdir(parents=True)
    program.symlink_to(f"../lib/{NAME}/{NAME}")
    libraries(tree / HOME / "python", suite)
    manuals(tree)
    completions(tree)


def copy(source: Path, place: Path, *, mode: int = 0o644) -> None:
    """Copy a file, with folders."""
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, place)
    place.chmod(mode)


def libraries(folder: Path, suite: Suite) -> None:
    """Install the locked libraries and this program into a folder, for another Python than this
    one."""
    machine = os.uname().machine
    install = (
        BUILT_BY / "uv", "pip", "install", "--quiet", "--target", folder, "--no-deps",
        "--python", sys.executable, "--python-version", suite.python,
        "--python-platform", f"{machine}-manylinux_2_28", "--link-mode", "copy",
    )  # fmt: skip
    locked = ROOT / "scripts" / "requirements.txt"
    run(*install, "--only-binary", ":all:", "--require-hashes", "--requirement", locked)
    with tempfile.TemporaryDirectory() as made:
        tools = ROOT / "scripts" / "requirements-build.txt"
        run(
            BUILT_BY / "uv", "build", "--quiet", "--wheel", "--out-dir", made,
            "--build-constraint", tools, "--require-hashes", ROOT,
        )  # fmt: skip
        run(*install, *Path(made).glob("*.whl"))
    shutil.rmtree(folder / "bin", ignore_errors=True)
    (folder / ".lock").unlink(missing_ok=True)
    for path in folder.rglob("*"):
        if path.name in OF_THE_INSTALLER and path.parent.suffix == ".dist-info":
            path.unlink()
        elif path.is_file():
            path.chmod(0o644)


def manuals(tree: Path) -> None:
    """Make the man pages."""
    with tempfile.TemporaryDirectory() as made:
        run(
            sys.executable, "-m", "sphinx", "-q", "-W", "-c", "docs", "-b", "man", "-d", f"{made}/tmp",
            ".", f"{made}/man",
        )  # fmt: skip
        for page in sorted(Path(made, "man").glob("*.[1-8]")):
            packed(page.read_bytes(), tree / f"usr/share/man/man{page.suffix[1:]}/{page.name}.gz")
    log = (ROOT / "CHANGELOG.md").read_bytes()
    packed(log, tree / f"usr/share/doc/{NAME}/changelog.gz")


def packed(content: bytes, place: Path) -> None:
    """Write a file that is compressed, without a name and a time."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(gzip.compress(content, 9, mtime=0))
    place.chmod(0o644)


def completions(tree: Path) -> None:
    """Make the completions of bash and zsh."""
    script = run(BUILT_BY / NAME, "complete", "--shell", "bash")
    bash = tree / f"usr/share/bash-completion/completions/{NAME}"
    bash.parent.mkdir(parents=True)
    bash.write_text(script)
    zsh = tree / f"usr/share/zsh/vendor-completions/_{NAME}"
    zsh.parent.mkdir(parents=True)
    zsh.write_text(
        f"#compdef {NAME}\nautoload -U +X bashcompinit && bashcompinit\n"
        f"source /usr/share/bash-completion/completions/{NAME}\n"
    )
    for path in (bash, zsh):
        path.chmod(0o644)


def settle(tree: Path) -> None:
    """Give all files and folders the same time, and folders their usual rights."""
    for path in [tree, *tree.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
        os.utime(path, (epoch(), epoch()), follow_symlinks=False)


def deb(tree: Path, suite: Suite, out: Path) -> Path:
    """Build the package of a Debian or Ubuntu."""
    made = tree.with_name(f"{tree.name}-deb")
    shutil.copytree(tree, made, symlinks=True)
    architecture = ARCHITECTURES[os.uname().machine]
    whole = f"{version()}-1~{suite.tag}"
    changes = f"usr/share/doc/{NAME}/changelog.Debian.gz"
    packed(changelog(whole).encode(), made / changes)
    control = made / "DEBIAN"
    control.mkdir()
    for script in ("postinst", "prerm", "postrm"):
        copy(ROOT / "config" / "debian" / script, control / script, mode=0o755)
    (control / "conffiles").write_text(f"/etc/default/{NAME}\n")
    sums = [
        f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(made)}"
        for path in files(made)
        if not path.is_relative_to(made / "etc") and not path.is_relative_to(control)
    ]
    (control / "md5sums").write_text("\n".join(sums) + "\n")
    size = sum(-(-path.stat().st_size // 1024) for path in files(made))
    (control / "control").write_text(
        f"Package: {NAME}\n"
        f"Version: {whole}\n"
        f"Architecture: {architecture}\n"
        f"Maintainer: {MAINTAINER}\n"
        f"Installed-Size: {size}\n"
        f"Pre-Depends: init-system-helpers (>= 1.54~)\n"
        f"Depends: libc6 (>= {LIBC}), python3 (>= {suite.python}~), python3 (<< {suite.next_python}), "
        f"systemd | systemd-sysusers\n"
        f"Recommends: ca-certificates\n"
        f"Section: net\n"
        f"Priority: optional\n"
        f"Description: keeps Glance images as Cinder volumes\n"
        f" Cinder can clone a volume from an image, and an image from a volume, instead of\n"
        f" copying the data. This daemon consumes the notifications of OpenStack's Glance\n"
        f" and Cinder, and makes sure that it does.\n"
        f" .\n"
        f" The Python libraries that it needs are part of this package.\n"
    )
    settle(made)
    package = out / f"{NAME}_{whole}_{architecture}.deb"
    run("dpkg-deb", "--root-owner-group", "-Zxz", "--build", made, package)
    return package


def files(tree: Path) -> Iterator[Path]:
    """Yield the files of a tree, without links, in order."""
    for path in sorted(tree.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield path


def changelog(whole: str) -> str:
    """Return Debian's own changelog: CHANGELOG.md is the other one."""
    when = formatdate(epoch())
    return (
        f"{NAME} ({whole}) unstable; urgency=medium\n\n"
        f"  * The changes are in changelog.gz beside this file.\n\n"
        f" -- {MAINTAINER}  {when}\n"
    )


def rpm(tree: Path, suite: Suite, out: Path) -> Path:
    """Build the package of a distribution with rpm and this suite's Python."""
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        made = top / "tree"
        shutil.copytree(tree, made, symlinks=True)
        shutil.rmtree(made / "usr" / "share" / "lintian")
        (made / "usr/share/zsh/vendor-completions").rename(made / "usr/share/zsh/site-functions")
        settle(made)
        spec = top / f"{NAME}.spec"
        text = (ROOT / "config" / "rpm" / f"{NAME}.spec").read_text()
        spec.write_text(text.replace("@VERSION@", version()).replace("@PYTHON@", suite.python))
        run(
            "rpmbuild", "-bb", "--quiet", "--define", f"_topdir {top}/rpm", "--define", f"tree {made}",
            "--define", "_build_id_links none", "--define", "_buildhost reproducible",
            "--define", "use_source_date_epoch_as_buildtime 1",
            "--define", "clamp_mtime_to_source_date_epoch 1", spec,
        )  # fmt: skip
        (built,) = top.glob("rpm/RPMS/*/*.rpm")
        package = out / built.name
        shutil.copyfile(built, package)
    return package


if __name__ == "__main__":
    sys.exit(main())
