"""`upgrade check`: its verdicts, and the form that OpenStack's services give them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.configurations import GOOD, load
from tests.worker_process import configuration
from worker.broker.inspect import DEAD, DELAYED, Depth, Look
from worker.broker.url import parse
from worker.cli import Worker
from worker.core.cloud import Store
from worker.diagnose.upgrade import configuration as of_configuration
from worker.diagnose.upgrade import lanes, notifications, targets

BROKER = parse("rabbit://u:p@h:5672/v")
NOBODY = Look(broker=BROKER, away={"h:5672": "refused"})
QUEUE = Look(broker=BROKER, queues={"ivw": Depth(messages=3)})


def test_notifications() -> None:
    def verdict(look: Look, *, limited: bool = True) -> str:
        return notifications("n", look, "ivw", limited=limited).verdict

    assert verdict(NOBODY) == "warn"
    assert verdict(Look(broker=BROKER)) == "ok"
    assert verdict(QUEUE) == "ok"
    assert verdict(QUEUE, limited=False) == "warn"
    refused = Look(broker=BROKER, queues=QUEUE.queues, refused="declared otherwise")
    assert verdict(refused) == "fail"


def test_lanes() -> None:
    waiting = {DELAYED: Depth(messages=2), DEAD: Depth(messages=1)}
    assert lanes(NOBODY, {}).verdict == "warn"
    told = lanes(
        Look(broker=BROKER, queues={"ivw.upload": Depth(messages=3), "ivw.dead": waiting[DEAD]}),
        waiting,
    )
    assert told.detail.endswith("lanes: 3, waiting for their next try: 2, dead letters: 1")
    assert lanes(Look(broker=BROKER, refused="declared otherwise"), waiting).verdict == "fail"


def test_targets(tmp_path: Path) -> None:
    settings = load(tmp_path, GOOD)
    stores = [Store(id="c", type="cinder", volume_type="ssd")]
    fast, slow = targets(settings, ["ssd"], stores)
    assert (fast.verdict, fast.detail) == ("ok", "strategy store")
    assert slow.verdict == "warn"
    assert "hdd" in slow.detail


def test_configuration() -> None:
    assert of_configuration([]).verdict == "ok"
    assert of_configuration(["[target:x] has no effect"]).verdict == "warn"


def test_a_configuration_that_is_refused_is_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "worker.conf"
    file.write_text(configuration({"prewarm": {"targets": "fast"}, "log": {"level": "loud"}}))
    command = ["--config-file", str(file), "upgrade", "check"]
    assert Worker().run(command) == 2
    table = capsys.readouterr().out
    assert "Upgrade Check Results" in table
    assert "Result: Failure" in table
    assert Worker().run([*command, "--json"]) == 2
    (check,) = json.loads(capsys.readouterr().out)["checks"]
    assert check["result"] == 2
    assert "loud" in check["details"]
    assert "target:fast" in check["details"]


def test_a_cloud_that_is_away_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clouds = tmp_path / "clouds.yaml"
    auth = {
        "auth_url": "http://127.0.0.1:9/v3",
        "username": "u",
        "password": "p",
        "project_id": "i",
    }
    clouds.write_text(json.dumps({"clouds": {"image-volume-worker": {"auth": auth}}}))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(clouds))
    file = tmp_path / "worker.conf"
    away = {**GOOD, "notifications": {"transport_urls": "rabbit://u:p@127.0.0.1:9/"}}
    file.write_text(configuration(away))
    assert Worker().run(["--config-file", str(file), "upgrade", "check", "--json"]) == 1
    checks = {one["check"]: one for one in json.loads(capsys.readouterr().out)["checks"]}
    assert {name: one["result"] for name, one in checks.items()} == {
        "Configuration": 0, "Notifications 0": 1, "Lanes": 0, "Cloud": 1,
    }  # fmt: skip
