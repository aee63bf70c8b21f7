"""Services that answer wrongly, late or not at all: jobs wait, then finish, and nothing is made twice."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from scripts.cloud.people import HOME, Person
from tests.cloud.conftest import groups, is_warm, until
from tests.cloud.proxy import Fault, Proxy
from tests.worker_process import WorkerProcess

Images = Callable[..., str]
GLANCE, CINDER = "http://127.0.0.1:9292", "http://127.0.0.1:8776"


def behind(folder: Path, glance: Proxy, cinder: Proxy) -> WorkerProcess:
    """A worker that reaches Glance and Cinder by way of the proxies."""
    clouds = yaml.safe_load((HOME / "clouds.yaml").read_text())
    entry = clouds["clouds"]["operator"]
    entry["image_endpoint_override"] = glance.url
    project = Person("operator").project_id
    entry["block_storage_endpoint_override"] = f"{cinder.url}/v3/{project}"
    file = folder / "clouds.yaml"
    file.write_text(yaml.safe_dump(clouds))
    file.chmod(0o600)
    return WorkerProcess(folder, groups(), clouds=file)


@pytest.mark.parametrize("fault", [500, 503, 429, "drop"])
def test_services_that_fail_for_a_while_are_waited_for(
    tmp_path: Path, images: Images, alice: Person, operator: Person, fault: Fault
) -> None:
    with Proxy(GLANCE) as glance, Proxy(CINDER) as cinder, behind(tmp_path, glance, cinder) as process:
        process.wait_ready()
        for service in (glance, cinder):
            service.fault = lambda method, path: fault
        image_id = images()
        until(lambda: glance.faults > 3, what="it tries")
        time.sleep(5)
        for service in (glance, cinder):
            service.fault = lambda method, path: None
        until(lambda: is_warm(operator, alice, image_id), what="warm")
        assert process.metric("api_retries_total") > 0
        assert process.events("job_parked") == []


@pytest.mark.parametrize("seed", [random.randrange(1 << 30)])
def test_a_third_of_all_requests_fail_and_answers_of_writes_are_lost(
    tmp_path: Path, images: Images, alice: Person, operator: Person, seed: int
) -> None:
    dice = random.Random(seed)

    def fault(method: str, path: str) -> Fault:
        if dice.random() > 0.33:
            return None
        return dice.choice([500, 503, "drop"] if method == "GET" else ["lose", "lose", 503, "drop"])

    with Proxy(GLANCE) as glance, Proxy(CINDER) as cinder, behind(tmp_path, glance, cinder) as process:
        process.wait_ready()
        for service in (glance, cinder):
            service.fault = fault
        made = [images() for _ in range(5)]
        until(lambda: all(is_warm(operator, alice, image_id) for image_id in made), what=f"warm, seed {seed}")
        assert glance.faults > 5
        assert cinder.faults > 5
