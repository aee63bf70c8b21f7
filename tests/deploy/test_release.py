"""A release: made of a tag alone, complete, and the same twice."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from pathlib import Path

import pytest

from tests.deploy import debian
from tests.deploy.debian import ROOT

pytestmark = pytest.mark.long


def test_a_release(tmp_path: Path) -> None:
    debian.needs("dpkg-deb", "rpmbuild", "minisign")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    clone, key, public = tmp_path / "clone", tmp_path / "key", tmp_path / "key.pub"
    debian.run("git", "clone", "--quiet", ROOT, clone)
    debian.run("git", "-C", clone, "tag", f"v{version}")
    # A change that is not committed does not get in
    (clone / "README.md").write_text("changed")
    debian.run("minisign", "-G", "-W", "-s", key, "-p", public)
    first, second = tmp_path / "first", tmp_path / "the second"
    debian.run(clone / "scripts" / "release", "--key", key, f"v{version}", first, timeout=1200)
    debian.run(clone / "scripts" / "release", f"v{version}", second, timeout=1200)
    assert (first / "SHA256SUMS").read_text() == (second / "SHA256SUMS").read_text()
    debian.run("minisign", "-V", "-p", public, "-m", first / "SHA256SUMS")
    debian.run("sha256sum", "--check", "--strict", "SHA256SUMS", cwd=first)
    names = {path.name for path in first.iterdir()}
    for ending in (".whl", ".deb", ".rpm", ".tgz", ".cdx.json", ".provenance.json", ".tar.gz"):
        assert any(name.endswith(ending) for name in names), (ending, names)
    assert sum(name.endswith(".deb") for name in names) == 3
    bill = json.loads((first / f"image-volume-worker-{version}.cdx.json").read_text())
    listed = {(one["name"], one["version"]) for one in bill["components"]}
    lock = (ROOT / "scripts" / "requirements.txt").read_text()
    assert set(re.findall(r"^([\w.-]+)==([^ ;\\]+)", lock, re.MULTILINE)) <= listed
    said = json.loads((first / f"image-volume-worker-{version}.provenance.json").read_text())
    for subject in said["subject"]:
        content = (first / subject["name"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == subject["digest"]["sha256"]
    assert debian.run("git", "-C", clone, "worktree", "list").count("\n") == 1
