"""The HTTP that monitors see."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from worker.metrics import Metrics
from worker.probes import Probes


@pytest.fixture
def problems() -> dict[str, str]:
    return {}


@pytest.fixture
def url(problems: dict[str, str]) -> Iterator[str]:
    probes = Probes(registry=Metrics().registry, sick=dict, unready=lambda: problems)
    yield f"http://127.0.0.1:{probes.start('127.0.0.1', 0)}"
    probes.stop()


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_ready_only_without_problems(url: str, problems: dict[str, str]) -> None:
    assert get(f"{url}/readyz") == (200, '{"ok": true, "problems": {}}\n')
    problems["lanes"] = "broker away"
    status, body = get(f"{url}/readyz")
    assert status == 503
    assert json.loads(body)["problems"] == {"lanes": "broker away"}
    assert get(f"{url}/healthz")[0] == 200


def test_metrics_have_our_names(url: str) -> None:
    status, body = get(f"{url}/metrics")
    assert status == 200
    assert 'image_volume_worker_build_info{version="' in body


def test_anything_else_is_not_found(url: str) -> None:
    assert get(f"{url}/admin")[0] == 404


def test_a_port_that_is_taken_is_an_error(url: str) -> None:
    with pytest.raises(OSError, match="in use"):
        Probes(registry=Metrics().registry, sick=dict, unready=dict).start("127.0.0.1", int(url.rpartition(":")[2]))
