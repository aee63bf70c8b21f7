"""The page by the rules of axe-core, which is fetched from npm: what readers of screens and people
who see little need."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.page.browser import Browser
from tests.page.world import Served, image_id, opened

AXE = "axe-core@4.10.2"
SHA512 = "RE3mdQ7P3FRSe7eqCWoeQ/Z9QXrtniSjp1wUjt5nRC3WIpz5rSCve6o3fsZ2aCpJtrZjSZgjwXAoTO5k4tEI0w=="
# How bad axe calls what may not be there
SERIOUS = ("serious", "critical")
RUN = """
axe.run(document, {runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]})
  .then(found => JSON.stringify(found.violations.map(one =>
    [one.impact, one.id, one.help, one.nodes.slice(0, 3).map(node => node.html.slice(0, 200))])))
"""


@pytest.fixture(scope="session")
def axe(pytestconfig: pytest.Config) -> str:
    """The script, downloaded once and then kept in pytest's cache."""
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir("axe")
    packed = folder / f"{AXE.replace('@', '-')}.tgz"
    if not packed.exists():
        if not (npm := shutil.which("npm")):
            pytest.skip("no npm to get axe-core with")
        done = subprocess.run(
            [npm, "pack", "--silent", "--pack-destination", folder, AXE],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"axe-core cannot be had: {done.stderr.strip()[-200:]}")
    digest = base64.b64encode(hashlib.sha512(packed.read_bytes()).digest()).decode()
    assert digest == SHA512
    with tarfile.open(packed) as tar:
        script = tar.extractfile("package/axe.min.js")
        assert script is not None
        return script.read().decode()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1440])
def test_axe_finds_nothing_serious(
    browser: Browser, served: Served, axe: str, width: int, dark: bool, tmp_path: Path
) -> None:
    opened(browser, served, width=width, height=900, dark=dark)
    browser.until("!!document.querySelector('#made tbody tr')")
    browser.value(f"{axe}; 1")
    found = {"page": json.loads(browser.value(RUN))}
    browser.value(f"showDetail('{image_id(7)}')")
    browser.until("!!document.querySelector('#d-body table')")
    found["detail"] = json.loads(browser.value(RUN))
    for where, violations in found.items():
        assert [one for one in violations if one[0] in SERIOUS] == [], where
