"""The scenarios of docs/tempest.md, run by Tempest itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.cloud.operate import KEYSTONE, PASSWORD, TARGETS, groups
from tests.devcloud import LONG
from tests.worker_process import WorkerProcess, configuration

INTERVAL = 15
"""Seconds of [prewarm] rewarm_interval, which the scenario of a deleted Image-Volume waits for."""


@pytest.mark.skipif(not LONG, reason="LONG=1 runs it")
def test_tempest_proves_a_deployment(worker: Callable[..., WorkerProcess], tmp_path: Path) -> None:
    tempest = Path(sys.executable).with_name("tempest")
    workspace = tmp_path / "workspace"
    subprocess.run(
        [tempest, "init", workspace, "--workspace-path", tmp_path / "workspaces.yaml"],
        check=True,
        capture_output=True,
    )
    options: dict[str, dict[str, object]] = {
        "oslo_concurrency": {"lock_path": workspace / "tempest_lock"},
        "auth": {
            "admin_username": "admin",
            "admin_password": PASSWORD,
            "admin_project_name": "admin",
            "admin_domain_name": "Default",
        },
        "identity": {"uri_v3": f"{KEYSTONE}/v3"},
        "service_available": {"glance": True, "cinder": True, "nova": False, "neutron": False},
        "volume": {"catalog_type": "block-storage"},
        "image_volume_worker": {"volume_type": TARGETS[0], "rewarm_interval": INTERVAL},
    }
    (workspace / "etc" / "tempest.conf").write_text(configuration(options))
    settings = dict(groups())
    settings["prewarm"] = {**settings["prewarm"], "rewarm_interval": INTERVAL}
    with worker(settings) as process:
        process.wait_ready()
        done = subprocess.run(
            [tempest, "run", "--regex", "worker.tempest", "--concurrency", "1"],
            cwd=workspace,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " - Passed: 5\n" in done.stdout
