"""The page by the rules of axe-core: it serves people with a screen reader, or with poor sight."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.page.browser import Browser
from tests.page.world import Served, image_id, opened

# A package of PyPI that carries axe-core 4.12.1; its own code is not used
PACKAGE = "axe-playwright-python==0.1.8"
SHA256 = "fdd263c998388f1a8e67cad02677e612d946248bd44d163be5e8650ea31f95f8"
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
    if not (wheels := list(folder.glob("*-0.1.8-*.whl"))):
        download = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")
        subprocess.run([*download, "--dest", folder, PACKAGE], check=True)
        wheels = list(folder.glob("*-0.1.8-*.whl"))
    (wheel,) = wheels
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == SHA256
    with ZipFile(wheel) as archive:
        return archive.read("axe_playwright_python/axe.min.js").decode()


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
