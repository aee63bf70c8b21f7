"""The short form of `scripts/soak`: everything is broken at random for five minutes, and
converges."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.cloud.operate import ROOT


@pytest.mark.long
@pytest.mark.usefixtures("devcloud_up")
def test_five_minutes_of_faults_leave_nothing_behind(tmp_path: Path) -> None:
    words = ("--minutes", "5", "--logs", str(tmp_path / "logs"))
    done = subprocess.run(
        [sys.executable, "-m", "scripts.soak", *words],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False,
    )  # fmt: skip
    # Its seed draws the same faults again: scripts/soak --minutes 5 --seed NUMBER
    assert done.returncode == 0, done.stdout
    assert "everything converged" in done.stdout
