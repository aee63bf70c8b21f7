"""Alerts and dashboard: they name what a real scrape has, fire when they should, and a real
Prometheus says so."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from handlers import ROUTES
from handlers.reasons import Reason
from tests.worker_process import free_port
from worker.core.cloud import Image
from worker.core.creation import NO_REASON, Way
from worker.core.state import State
from worker.engine.runner import OUTCOMES
from worker.observe.http import Page, Probes
from worker.observe.metrics import LABELS, Metrics

ROOT = Path(__file__).parents[2]
RULES = ROOT / "config" / "prometheus" / "rules.yaml"
DASHBOARD = ROOT / "config" / "grafana" / "dashboard.json"
PATIENCE = 120.0
NAME = re.compile(r"image_volume_worker_\w+")
SELECTOR = re.compile(r"(image_volume_worker_\w+)\{([^}]*)\}")
# What Prometheus or its Grafana adds to what is scraped
ADDED = {"instance", "job", "le"}


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [alert["expr"] for alert in alerts()] + [
        target["expr"] for panel in panels for target in panel["targets"]
    ]


@pytest.fixture
def metrics() -> Metrics:
    """Of a worker that has seen something of everything."""
    made = Metrics()
    made.notification("image.update", "routed")
    made.notification_lag.observe(1.0)
    made.jobs.labels("prewarm", "fast", "done").inc()
    made.job_seconds.labels("prewarm", "fast").observe(1.0)
    made.jobs_in_progress.labels("prewarm.fast").set(0)
    made.depths({"prewarm.fast": 0, "dead": 0}, {})
    made.census({("fast", "available"): 1}, {"fast": 1})
    made.time_to_warm.labels("fast").observe(1.0)
    made.images_warmed.labels("fast").inc()
    made.upload_completed("property")
    made.volume_create.labels("fast", "true").observe(1.0)
    made.api_requests.labels("image", "GET", "200").inc()
    made.api_seconds.labels("image", "GET").observe(0.1)
    made.api_retries.labels("image", "503").inc()
    made.rewarm_began("fast", "changed")
    made.rewarm_held_back("fast")
    made.reclaimed("gone")
    image = Image(
        id="i",
        status="active",
        owner="o",
        disk_format="raw",
        container_format="bare",
        visibility="public",
        size=1,
    )
    made.seen(image, {"fast": (State.WARM, "")})
    made.states()
    made.target_usable.labels("fast").set(1)
    made.target_paused.labels("fast").set(0)
    made.volume_creates.labels("fast", "cache", "").inc()
    made.task_failures.labels("lanes")
    made.ready.set(1)
    return made


@pytest.fixture
def url(metrics: Metrics) -> Iterator[str]:
    page = Page(status=lambda most: {}, images=lambda choice: {})
    probes = Probes(registry=metrics.registry, sick=dict, unready=dict, page=page)
    yield f"http://127.0.0.1:{probes.start('127.0.0.1', 0)}"
    probes.stop()


def test_what_they_name_is_in_a_real_scrape(url: str) -> None:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    assert len(expressions()) > 25
    for expression in expressions():
        for name in NAME.findall(expression):
            assert name in labels, f"{name} is in no scrape: {expression}"
        for name, selector in SELECTOR.findall(expression):
            asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
            assert asked <= labels[name] | ADDED, f"{name} has no such label: {expression}"
        for grouped in re.findall(r"by \(([^)]*)\)", expression):
            known = set().union(*(labels[name] for name in NAME.findall(expression)))
            assert set(re.split(r",\s*", grouped)) <= known | ADDED, expression


# What a worker writes into these labels, and nothing else
WORDS = {
    "outcome": set(OUTCOMES),
    "handler": set(ROUTES),
    "lane": {"upload"},
    "state": {LABELS.get(state, state) for state in State},
    "warm": {"true", "false", "unknown"},
    "path": {*Way},
    "reason": {"", NO_REASON, *Reason},
}


def test_the_words_that_they_look_for_are_a_workers() -> None:
    looked_for: dict[str, set[str]] = {}
    for expression in expressions():
        for _, selector in SELECTOR.findall(expression):
            for label, words in re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', selector):
                looked_for.setdefault(label, set()).update(words.split("|"))
    assert looked_for.keys() >= {"outcome", "handler", "lane", "state", "warm"}
    for label, known in WORDS.items():
        assert looked_for[label] <= known, label


def test_each_alert_has_a_runbook() -> None:
    text = (ROOT / "docs" / "alerts.md").read_text()
    paragraphs = re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    chapters = {title.lower(): body for title, body in paragraphs}
    names = {alert["alert"].lower() for alert in alerts()}
    assert names == set(chapters)
    for alert in alerts():
        assert alert["annotations"]["runbook_url"] == f"docs/alerts.md#{alert['alert'].lower()}"
        assert alert["labels"]["severity"] in ("info", "warning", "critical")
        assert alert["annotations"]["summary"]
    assert all(len(body.strip()) > 100 for body in chapters.values())


def test_rules_fire_when_they_should() -> None:
    for command in (
        ["check", "rules", str(RULES)],
        ["test", "rules", str(ROOT / "tests/deploy/rules_test.yaml")],
    ):
        done = subprocess.run(["promtool", *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "SUCCESS" in done.stdout + done.stderr
    tested = (ROOT / "tests/deploy/rules_test.yaml").read_text()
    assert [alert["alert"] for alert in alerts() if tested.count(alert["alert"]) < 2] == [], (
        "not tested"
    )


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def test_each_panel_says_what_it_shows() -> None:
    descriptions = [panel["description"] for panel in dashboard()["panels"]]
    assert all(len(text) > 40 and text.endswith(".") for text in descriptions), descriptions
    assert len(set(descriptions)) == len(descriptions)


def test_what_has_a_target_is_chosen_by_target_and_everything_by_worker() -> None:
    board = dashboard()
    variables = {one["name"]: one for one in board["templating"]["list"]}
    assert variables.keys() == {"datasource", "instance", "target", "runbooks"}
    assert NAME.search(variables["target"]["query"]["query"])
    for panel in board["panels"]:
        for target in panel["targets"]:
            for name, selector in SELECTOR.findall(target["expr"]):
                assert 'instance=~"$instance"' in selector, (name, panel["title"])
                if "target" in of_targets()[name]:
                    assert 'target=~"$target"' in selector, (name, panel["title"])
            # Nothing without a selector
            assert len(NAME.findall(target["expr"])) == len(SELECTOR.findall(target["expr"]))


def of_targets() -> dict[str, set[str]]:
    """The labels of each metric by its name in queries."""
    registry = Metrics().registry
    return {
        name: set(getattr(collector, "_labelnames", ()))
        for collector, names in registry._collector_to_names.items()
        for name in names
    }


def threshold_of(alert: dict[str, Any]) -> list[float]:
    """The number that the alert compares with. A panel marks 1 where the alert says above 0."""
    number = re.search(r"(?:==|>|<)\s*([\d.]+)", re.sub(r"#.*", "", alert["expr"]))
    return [float(number[1]) or 1.0] if number else []


def test_each_alert_has_a_panel_with_its_runbook_and_its_threshold() -> None:
    linked: dict[str, list[dict[str, Any]]] = {}
    for panel in dashboard()["panels"]:
        for link in panel.get("links", ()):
            linked.setdefault(link["url"], []).append(panel)
    for alert in alerts():
        panels = linked.pop(f"${{runbooks}}/{alert['annotations']['runbook_url']}", [])
        assert panels, f"no panel for {alert['alert']}"
        steps = [
            step["value"]
            for panel in panels
            for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        ]
        for number in threshold_of(alert):
            assert number in steps, alert["alert"]
    assert not linked, "links to no alert"


def test_the_dashboard_leads_to_the_page_and_to_the_documents() -> None:
    board = dashboard()
    ready = next(panel for panel in board["panels"] if panel["title"] == "Ready")
    (link,) = ready["fieldConfig"]["defaults"]["links"]
    assert link["url"] == "http://${__field.labels.instance}/"
    assert ready["targets"][0]["legendFormat"] == "{{instance}}"
    for link in board["links"]:
        _, _, path = link["url"].partition("${runbooks}/")
        assert (ROOT / path).is_file()


def test_panels_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)


@pytest.fixture
def prometheus(url: str, tmp_path: Path) -> Iterator[str]:
    """A real Prometheus that scrapes it, with our rules; they wait for nothing, or the test would
    for minutes."""
    (tmp_path / "rules.yaml").write_text(re.sub(r"for: \d+\w", "for: 0s", RULES.read_text()))
    config = {
        "global": {
            "scrape_interval": "200ms",
            "scrape_timeout": "200ms",
            "evaluation_interval": "200ms",
        },
        "rule_files": [str(tmp_path / "rules.yaml")],
        "scrape_configs": [
            {"job_name": "worker", "static_configs": [{"targets": [url.removeprefix("http://")]}]},
        ],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    binary = shutil.which("prometheus")
    assert binary, "prometheus is missing"
    port = free_port()
    with (tmp_path / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                binary,
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def firing(prometheus: str) -> set[str]:
    try:
        with urllib.request.urlopen(f"{prometheus}/api/v1/alerts", timeout=60) as answer:
            found = json.load(answer)["data"]["alerts"]
    except OSError:
        return set()
    return {alert["labels"]["alertname"] for alert in found if alert["state"] == "firing"}


def until(prometheus: str, *, name: str, fires: bool) -> None:
    deadline = time.monotonic() + PATIENCE
    while (name in firing(prometheus)) is not fires:
        assert time.monotonic() < deadline, (
            f"{name} should {'fire' if fires else 'resolve'}: {firing(prometheus)}"
        )
        time.sleep(0.2)


def scraped(prometheus: str) -> bool:
    try:
        with urllib.request.urlopen(
            f"{prometheus}/api/v1/query?query=image_volume_worker_ready", timeout=60
        ) as answer:
            return bool(json.load(answer)["data"]["result"])
    except OSError:
        return False


def test_a_real_prometheus_fires_and_resolves(prometheus: str, metrics: Metrics) -> None:
    deadline = time.monotonic() + PATIENCE
    while not scraped(prometheus):
        assert time.monotonic() < deadline, "it is not scraped"
        time.sleep(0.2)
    until(prometheus, name="ImageVolumeWorkerDown", fires=False)
    for expression in expressions():
        # As Grafana fills it in
        query = expression.replace("$__rate_interval", "1m")
        query = query.replace("$instance", ".*").replace("$target", ".*")
        with urllib.request.urlopen(
            f"{prometheus}/api/v1/query?{urlencode({'query': query})}", timeout=60
        ) as answer:
            assert json.load(answer)["status"] == "success", expression
    metrics.ready.set(0)
    metrics.dead_letters.labels("all").set(3)
    until(prometheus, name="ImageVolumeWorkerNotReady", fires=True)
    until(prometheus, name="ImageVolumeWorkerDeadLetters", fires=True)
    metrics.ready.set(1)
    metrics.dead_letters.labels("all").set(0)
    until(prometheus, name="ImageVolumeWorkerNotReady", fires=False)
    until(prometheus, name="ImageVolumeWorkerDeadLetters", fires=False)
