"""The Helm chart, by Helm's own engine: it fits Kubernetes, starts the worker, and names what is
wrong in values."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from oslo_config import cfg, types

from scripts import chart as writer
from tests.worker_process import free_port
from worker import settings
from worker.settings import OPTIONS, TARGET_OPTIONS
from worker.settings.options import read

# There is none for every platform
helm = pytest.importorskip("helm_python")

ROOT = Path(__file__).parents[2]
CHART = ROOT / "config" / "helm" / "image-volume-worker"
GOLDEN = Path(__file__).parent / "golden"
# The oldest that the chart is for, one in between, the newest that there are schemas of
KUBERNETES = ("1.29", "1.32", "1.37")
BY_HAND = {"ServiceMonitor", "PrometheusRule"}
NAME = "iv-image-volume-worker"
Values = dict[str, Any]
Thing = dict[str, Any]

SECRET = {"existingSecret": "broker-and-login"}
MINIMAL: Values = {
    "targets": {"fast": {"volume_type": "ssd"}},
    "secrets": {"transportUrls": SECRET, "workUrl": SECRET, "clouds": SECRET},
}
LOGIN = {
    "auth_url": "http://127.0.0.1:1/v3",
    "username": "worker",
    "password": "hush-login",
    "project_name": "internal",
    "user_domain_name": "Default",
    "project_domain_name": "Default",
}
HUSH = ("hush-one", "hush$two", "hush-three", "hush-four", "hush-five", "hush-login")
FULL: Values = {
    "config": {
        "notifications": {"exchanges": ["glance", "openstack"], "queue_max_length": 1_000_000},
        "work": {"drain_timeout": 45.5},
        "prewarm": {
            "min_size": 10_737_418_240,
            "visibilities": ["public", "community"],
            "when": "used",
        },
        "uploads": {"status_property": ""},
        "reclaim": {"dry_run": True},
        "resync": {"interval": 600},
        "probes": {"page": True},
        "log": {"level": "debug"},
    },
    "targets": {
        "fast": {"volume_type": "ssd $1"},
        "archive": {"volume_type": "hdd", "strategy": "cache"},
    },
    "secrets": {
        "transportUrls": {
            "value": [
                "rabbit://worker:hush-one@127.0.0.1:1,worker:hush$two@127.0.0.1:2/glance",
                "rabbit://worker:hush-three@127.0.0.1:1/cinder",
            ]
        },
        "workUrl": {"value": "amqp://worker:hush-four@127.0.0.1:1/image-volume-worker"},
        "managementUrls": {"value": ["http://monitor:hush-five@127.0.0.1:1"]},
        "clouds": {"value": yaml.safe_dump({"clouds": {"image-volume-worker": {"auth": LOGIN}}})},
    },
    "image": {
        "repository": "registry.example.org/image-volume-worker",
        "digest": f"sha256:{'a' * 64}",
    },
    "imagePullSecrets": [{"name": "registry"}],
    "extraEnv": [{"name": "SSL_CERT_FILE", "value": "/ca/ca.crt"}],
    "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
    "extraVolumeMounts": [{"name": "ca", "mountPath": "/ca", "readOnly": True}],
    "serviceAccount": {"annotations": {"a": "b"}},
    "deploymentAnnotations": {"reloader": "yes"},
    "podAnnotations": {"c": "d"},
    "podLabels": {"team": "storage"},
    "priorityClassName": "high",
    "nodeSelector": {"openstack-control-plane": "enabled"},
    "tolerations": [
        {
            "key": "node-role.kubernetes.io/control-plane",
            "operator": "Exists",
            "effect": "NoSchedule",
        }
    ],
    "podAntiAffinity": "hard",
    "service": {"annotations": {"e": "f"}},
    "podDisruptionBudget": {"minAvailable": "50%"},
    "networkPolicy": {
        "ingress": {"from": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]},
        "egress": {
            "enabled": True,
            "rules": [{"to": [{"namespaceSelector": {}}], "ports": [{"port": 5672}]}],
        },
    },
    "serviceMonitor": {
        "enabled": True,
        "labels": {"release": "prometheus"},
        "relabelings": [{"targetLabel": "cloud", "replacement": "one"}],
        "metricRelabelings": [{"action": "labeldrop", "regex": "pod"}],
    },
    "prometheusRule": {
        "enabled": True,
        "namespace": "monitoring",
        "runbookBase": "https://runbooks.example.org/worker",
        "labels": {"release": "prometheus"},
    },
    "dashboard": {
        "enabled": True,
        "namespace": "monitoring",
        "annotations": {"grafana_folder": "OpenStack"},
    },
    "backfill": {
        "resync": {"enabled": True, "args": ["--target", "fast"]},
        "replay": {"enabled": True, "existingClaim": "captures", "args": ["--since", "2026-01-01"]},
    },
    "cronJob": {
        "enabled": True,
        "timeZone": "Europe/Berlin",
        "resources": {"limits": {"memory": "256Mi"}},
    },
}
MEMORY: Values = {
    **MINIMAL,
    "replicaCount": 1,
    "secrets": {"transportUrls": SECRET, "clouds": SECRET},
}
MATRIX: dict[str, Values] = {
    "minimal": MINIMAL,
    "full": FULL,
    "memory": MEMORY,
    "variables instead of clouds.yaml": {
        **MINIMAL,
        "config": {"cloud": {"name": ""}},
        "secrets": {"transportUrls": SECRET, "workUrl": SECRET},
        "extraEnvFrom": [{"secretRef": {"name": "keystone-user"}}],
    },
    "as little as possible": {
        **MINIMAL,
        "serviceAccount": {"create": False},
        "podAntiAffinity": "none",
        "topologySpreadConstraints": [],
        "updateStrategy": {"type": "Recreate"},
        "podDisruptionBudget": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "tests": {"enabled": False},
        "resources": {"requests": None, "limits": None},
        # As every subchart gets it
        "global": {"region": "one"},
    },
}


def examples() -> dict[str, Values]:
    """The values that the documentation shows, by their headings."""
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    found = {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        blocks = [
            yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
        ]
        whole = [block for block in blocks if "targets" in block]
        if whole:
            (found[section.splitlines()[0]],) = whole
    return found


def render(values: Values, **options: Any) -> dict[str, list[Thing]]:
    """The objects, by the template that they come from."""
    with helm.Chart.load(CHART) as chart:
        texts = chart.render(values, name="iv", namespace="openstack", **options)
    return {
        path.partition("templates/")[2]: [thing for thing in yaml.safe_load_all(text) if thing]
        for path, text in texts.items()
        if path.endswith(".yaml")
    }


def things(values: Values) -> list[Thing]:
    """All objects."""
    return [thing for made in render(values).values() for thing in made]


def only(values: Values, kind: str, name: str = "") -> Thing:
    """The one object of this kind."""
    (found,) = [
        thing
        for thing in things(values)
        if thing["kind"] == kind and name in (thing["metadata"]["name"], "")
    ]
    return found


def changed(values: Values, path: str, value: object) -> Values:
    """The same with one value, named by its path, set."""
    # A copy in which nothing is shared, as in a file
    result: Values = json.loads(json.dumps(values))
    place = result
    *groups, last = path.split("/")
    for group in groups:
        place = place.setdefault(group, {})
    place[last] = value
    return result


def pod_specs(thing: Thing) -> Iterator[Thing]:
    """The pods that this object leads to."""
    match thing["kind"]:
        case "Pod":
            yield thing["spec"]
        case "Deployment" | "Job":
            yield thing["spec"]["template"]["spec"]
        case "CronJob":
            yield thing["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def test_nothing_to_lint() -> None:
    for values in ({}, *MATRIX.values()):
        report = helm.lint(CHART, values, strict=True)
        assert not report["errors"]
        # An icon would be nice, it says at level info
        assert [message for message in report["messages"] if message["severity"] > 1] == []


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_kubernetes_takes_it(values: Values, version: str) -> None:
    made = things(values)
    assert len({(thing["kind"], thing["metadata"]["name"]) for thing in made}) == len(made)
    for thing in made:
        assert re.fullmatch(r"[a-z0-9][-a-z0-9]{0,62}", thing["metadata"]["name"])
        if thing["kind"] not in BY_HAND:
            # Strict: what it does not know it would leave out
            assert kubernetes_validate.validate(thing, version, strict=True) == version


def test_what_prometheus_operator_reads() -> None:
    monitor, rule = only(FULL, "ServiceMonitor"), only(FULL, "PrometheusRule")
    service = only(FULL, "Service")
    assert monitor["apiVersion"] == rule["apiVersion"] == "monitoring.coreos.com/v1"
    assert (
        monitor["metadata"]["labels"]["release"]
        == rule["metadata"]["labels"]["release"]
        == "prometheus"
    )
    assert (
        monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    )
    assert monitor["spec"]["namespaceSelector"]["matchNames"] == [service["metadata"]["namespace"]]
    assert monitor["spec"]["jobLabel"] in service["metadata"]["labels"]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert (endpoint["path"], endpoint["interval"], endpoint["scrapeTimeout"]) == (
        "/metrics",
        "30s",
        "10s",
    )
    assert endpoint["relabelings"] == FULL["serviceMonitor"]["relabelings"]
    assert endpoint["metricRelabelings"] == FULL["serviceMonitor"]["metricRelabelings"]
    # As they stand, with Prometheus' own braces, but for what other values tell
    given = yaml.safe_load((ROOT / "config/prometheus/rules.yaml").read_text())
    plain = only(changed(MINIMAL, "prometheusRule/enabled", True), "PrometheusRule")
    assert plain["spec"] == given
    text = json.dumps(given).replace("> 14400", f"> {4 * FULL['config']['resync']['interval']}")
    text = text.replace(
        '"docs/alerts.md#', f'"{FULL["prometheusRule"]["runbookBase"]}/docs/alerts.md#'
    )
    assert rule["spec"] == json.loads(text) != given
    assert "ImageVolumeWorkerDown" in {
        one.get("alert") for group in rule["spec"]["groups"] for one in group["rules"]
    }


def test_the_dashboard_is_what_grafanas_sidecar_looks_for() -> None:
    dashboard = only(FULL, "ConfigMap", f"{NAME}-dashboard")
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert dashboard["metadata"]["namespace"] == "monitoring"
    text = (ROOT / "config/grafana/dashboard.json").read_text()
    plain = only(changed(MINIMAL, "dashboard/enabled", True), "ConfigMap", f"{NAME}-dashboard")
    assert json.loads(plain["data"]["image-volume-worker.json"]) == json.loads(text)
    # As the alerts: the runbooks' address and the interval of the resync come from other values
    text = text.replace(
        "https://example.org/image-volume-worker", FULL["prometheusRule"]["runbookBase"]
    ).replace("14400", str(4 * FULL["config"]["resync"]["interval"]))
    assert json.loads(dashboard["data"]["image-volume-worker.json"]) == json.loads(text)


@pytest.mark.parametrize("path", writer.wanted(), ids=lambda path: path.name)
def test_what_comes_from_elsewhere_is_current(path: Path) -> None:
    assert path.read_text() == writer.wanted()[path], (
        f"{path.name} is not current: python -m scripts.chart writes it"
    )


def test_the_chart_is_of_this_version() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    (version,) = re.findall(
        r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    assert about["appVersion"] == version


@pytest.mark.parametrize("template", sorted(name for name, made in render(MINIMAL).items() if made))
def test_golden(template: str) -> None:
    golden = GOLDEN / Path(template).name
    text = yaml.safe_dump_all(render(MINIMAL)[template], sort_keys=False)
    if os.environ.get("GOLDEN") == "write":
        golden.write_text(text)
    assert golden.read_text() == text, (
        "not as it was. If it should be: GOLDEN=write pytest tests/deploy/test_helm.py"
    )


def test_no_golden_file_is_left_over() -> None:
    made = {Path(template).name for template, found in render(MINIMAL).items() if found}
    assert {path.name for path in GOLDEN.iterdir()} == made


WRONG: list[tuple[str, object, str]] = [
    ("replicas", 3, "replicas"),
    ("replicaCount", "two", "/replicaCount"),
    ("replicaCount", -1, "/replicaCount"),
    ("image/tag", 1.0, "/image/tag"),
    ("image/digest", "latest", "/image/digest"),
    ("image/pullPolicy", "Sometimes", "/image/pullPolicy"),
    ("config/prewarn", {}, "prewarn"),
    ("config/work/max_atempts", 3, "max_atempts"),
    ("config/work/max_attempts", 0, "/config/work/max_attempts"),
    ("config/work/max_attempts", "3", "/config/work/max_attempts"),
    ("config/work/hold_limit", 1201, "/config/work/hold_limit"),
    ("config/work/url", "memory://", "'url' not allowed"),
    ("config/notifications/transport_urls", [], "'transport_urls' not allowed"),
    ("config/notifications/management_urls", [], "'management_urls' not allowed"),
    ("config/notifications/exchanges", "glance,cinder", "/config/notifications/exchanges"),
    ("config/notifications/exchanges", ["glance,cinder"], "/config/notifications/exchanges/0"),
    ("config/notifications/queue", "a\nb = c", "/config/notifications/queue"),
    ("config/prewarm/targets", ["fast"], "'targets' not allowed"),
    ("config/prewarm/visibilities", ["everybody"], "/config/prewarm/visibilities/0"),
    ("config/probes/bind", "127.0.0.1:1", "'bind' not allowed"),
    ("config/log/level", "loud", "/config/log/level"),
    ("targets/upload", {"volume_type": "ssd"}, "'upload'"),
    ("targets/a b", {"volume_type": "ssd"}, "'a b'"),
    ("targets/fast/volumetype", "ssd", "'volumetype' not allowed"),
    ("targets/fast/strategy", "magic", "/targets/fast/strategy"),
    ("targets/fast/volume_type", "", "targets.fast.volume_type is missing"),
    ("targets", {}, "targets: name at least one"),
    (
        "targets/slow",
        {"volume_type": "ssd"},
        "targets.slow.volume_type: ssd is that of targets.fast too",
    ),
    (
        "targets/fast",
        {"volume_type": "ssd", "strategy": "store", "disk_formats": ["raw", "qcow2"]},
        "targets.fast.disk_formats: Cinder clones nothing but raw with strategy store",
    ),
    ("secrets/transportUrls", {"value": ["http://h"]}, "secrets.transportUrls.value: http"),
    (
        "secrets/transportUrls",
        {"value": ["h:5672"]},
        "secrets.transportUrls.value: each is rabbit://",
    ),
    ("tolerations", [{"key": "a", "effects": "NoSchedule"}], "'effects' not allowed"),
    ("cronJob", {"enabled": True, "args": ["run"]}, "cronJob.args: begins with one of resync"),
    ("prometheusRule/runbookBase", "docs", "/prometheusRule/runbookBase"),
    ("secrets/transportUrls", {"value": "rabbit://h"}, "/secrets/transportUrls/value"),
    ("secrets/transportUrls", {}, "secrets.transportUrls: which broker"),
    (
        "secrets/transportUrls/value",
        ["rabbit://h"],
        "secrets.transportUrls: either value or existingSecret",
    ),
    ("secrets/password", "x", "'password' not allowed"),
    (
        "secrets/clouds",
        {"value": "clouds: ["},
        "secrets.clouds.value: not the text of a clouds.yaml",
    ),
    (
        "secrets/clouds",
        {"value": "clouds.yaml"},
        "secrets.clouds.value: not the text of a clouds.yaml",
    ),
    (
        "secrets/clouds",
        {"value": "clouds: {a: {}, b: {}}"},
        "no entry image-volume-worker (config.cloud.name), only a, b",
    ),
    (
        "podLabels",
        {"app.kubernetes.io/component": "x"},
        "podLabels: app.kubernetes.io/component is the chart's own",
    ),
    (
        "updateStrategy/rollingUpdate",
        {"maxSurge": 0, "maxUnavailable": "0%"},
        "no pod can ever be replaced",
    ),
    ("fullnameOverride", "x" * 44, "fullnameOverride: give a name of at most 43 letters"),
    ("secrets/clouds", {}, "secrets.clouds: no login"),
    ("secrets/workUrl", {}, "replicaCount: 2 workers cannot share lanes in memory"),
    (
        "secrets/workUrl",
        {"value": "memory://"},
        "replicaCount: 2 workers cannot share lanes in memory",
    ),
    ("containerPort", 80, "/containerPort"),
    ("service/type", "Internal", "/service/type"),
    ("resources/limits", {"memory": "much"}, "/resources/limits/memory"),
    ("resources/limit", {"memory": "1Gi"}, "'limit' not allowed"),
    ("livenessProbe/httpGet", {"path": "/"}, "'httpGet' not allowed"),
    ("podAntiAffinity", "some", "/podAntiAffinity"),
    ("podDisruptionBudget/minAvailable", "one", "/podDisruptionBudget/minAvailable"),
    ("networkPolicy/ingress/from", [{"podselector": {}}], "/networkPolicy/ingress/from/0"),
    ("networkPolicy/egress", {"enabled": True}, "networkPolicy.egress.rules"),
    ("serviceMonitor/interval", "often", "/serviceMonitor/interval"),
    ("terminationGracePeriodSeconds", 30, "terminationGracePeriodSeconds: has to be more"),
    ("backfill/replay/enabled", True, "backfill.replay.existingClaim"),
    ("cronJob/schedule", "daily", "/cronJob/schedule"),
    ("extraEnv", [{"name": "A", "vale": "b"}], "'vale' not allowed"),
]


@pytest.mark.parametrize(
    ("path", "value", "told"), WRONG, ids=[f"{path}={value}" for path, value, _ in WRONG]
)
def test_a_wrong_value_is_named(path: str, value: object, told: str) -> None:
    with pytest.raises(helm.HelmError) as caught:
        render(changed(MINIMAL, path, value))
    assert told in str(caught.value)


@pytest.mark.parametrize("path", ["backfill/resync/enabled", "cronJob/enabled"])
def test_jobs_need_lanes_that_others_read(path: str) -> None:
    with pytest.raises(helm.HelmRenderError, match=r"no lanes to put its work into"):
        render(changed(MEMORY, path, True))
    render(changed(MEMORY, "cronJob", {"enabled": True, "args": ["doctor"]}))


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(helm.HelmRenderError) as caught:
        render({})
    for name in ("targets:", "secrets.transportUrls:", "secrets.clouds:", "replicaCount:"):
        assert name in str(caught.value)


def test_with_lanes_in_memory_there_is_never_a_second_worker() -> None:
    spec = only(MEMORY, "Deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert only(MINIMAL, "Deployment")["spec"]["strategy"]["type"] == "RollingUpdate"


def test_secrets_are_in_secrets_only() -> None:
    for thing in things(FULL):
        text = json.dumps(thing)
        if thing["kind"] == "Secret":
            assert all(word.replace("$", "$$") in text for word in HUSH)
        else:
            assert "hush" not in text, thing["kind"]
    assert not [thing for thing in things(MINIMAL) if thing["kind"] == "Secret"]


def test_the_schema_knows_no_option_with_a_password() -> None:
    known = json.loads((CHART / "values.schema.json").read_text())["properties"]["config"][
        "properties"
    ]
    secret = {
        (group.name, option.name)
        for group, options in OPTIONS.items()
        for option in options
        if option.secret
    }
    assert secret == {
        ("notifications", "transport_urls"),
        ("notifications", "management_urls"),
        ("work", "url"),
    }
    assert not [(group, name) for group, name in secret if name in known[group]["properties"]]


@pytest.mark.parametrize("values", [MINIMAL, FULL], ids=["minimal", "full"])
def test_pods_are_as_the_restricted_profile_wants_them(values: Values) -> None:
    pods = [pod for thing in things(values) for pod in pod_specs(thing)]
    assert len(pods) == (5 if values is FULL else 2)
    for pod in pods:
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 65532
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        kinds = {kind for volume in pod["volumes"] for kind in volume.keys() - {"name"}}
        assert kinds <= {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
    assert only(values, "ServiceAccount")["automountServiceAccountToken"] is False


def test_what_belongs_together_finds_each_other() -> None:
    deployment = only(FULL, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        only(FULL, "Service")["spec"]["selector"],
        only(FULL, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        deployment["spec"]["template"]["spec"]["topologySpreadConstraints"][0]["labelSelector"][
            "matchLabels"
        ],
        deployment["spec"]["template"]["spec"]["affinity"]["podAntiAffinity"][
            "requiredDuringSchedulingIgnoredDuringExecution"
        ][0]["labelSelector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector.items() <= labels.items()
        for job in (thing for thing in things(FULL) if thing["kind"] == "Job"):
            assert not selector.items() <= job["spec"]["template"]["metadata"]["labels"].items()
    policy = only(FULL, "NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    (port,) = container["ports"]
    assert policy["ingress"][0]["ports"] == [{"port": port["containerPort"], "protocol": "TCP"}]
    assert f"bind = 0.0.0.0:{port['containerPort']}" in written(FULL)
    paths = {
        name: container[name]["httpGet"]
        for name in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert {probe["port"] for probe in paths.values()} == {port["name"]}
    assert [probe["path"] for probe in paths.values()] == ["/healthz", "/healthz", "/readyz"]


@pytest.mark.parametrize(
    ("path", "value", "rolls"),
    [
        ("config/work/max_attempts", 7, True),
        ("targets/third", {"volume_type": "nvme"}, True),
        ("secrets/workUrl/value", "amqp://worker:other@h/v", True),
        ("secrets/clouds/value", "clouds: {image-volume-worker: {}}", True),
        ("replicaCount", 3, False),
        ("dashboard/enabled", False, False),
    ],
)
def test_a_change_of_what_is_read_at_start_rolls_the_pods(
    path: str, value: object, rolls: bool
) -> None:
    before, after = (
        only(values, "Deployment")["spec"]["template"]["metadata"]["annotations"]
        for values in (FULL, changed(FULL, path, value))
    )
    assert (before != after) is rolls


def test_a_job_that_changes_is_another_one() -> None:
    def names(values: Values) -> set[str]:
        return {thing["metadata"]["name"] for thing in things(values) if thing["kind"] == "Job"}

    assert len(names(FULL)) == 2
    assert names(FULL) == names(changed(FULL, "replicaCount", 5))
    for path, value in (
        ("backfill/id", "2"),
        ("config/work/max_attempts", 7),
        ("image/digest", ""),
    ):
        assert not names(FULL) & names(changed(FULL, path, value))


def test_a_backfill_stays_so_that_no_upgrade_makes_it_again() -> None:
    for job in (thing for thing in things(FULL) if thing["kind"] == "Job"):
        assert "ttlSecondsAfterFinished" not in job["spec"]
        assert job["spec"]["backoffLimit"] == 3
    for job in (
        thing
        for thing in things(changed(FULL, "backfill/ttlSecondsAfterFinished", 0))
        if thing["kind"] == "Job"
    ):
        assert job["spec"]["ttlSecondsAfterFinished"] == 0
    cron = only(FULL, "CronJob")["spec"]["jobTemplate"]["spec"]
    assert (cron["backoffLimit"], cron["activeDeadlineSeconds"]) == (1, 3600)


@pytest.mark.parametrize("group", ["probes", "cloud", "work", "resync"])
def test_a_group_can_be_emptied(group: str) -> None:
    text = written(changed(FULL | {"secrets": MINIMAL["secrets"]}, f"config/{group}", None))
    for option in ("name", *FULL["config"].get(group, {})):
        assert f"\n{option} = " not in text.partition(f"[{group}]")[2].partition("\n[")[0]


def test_a_pod_has_more_time_than_its_jobs_in_progress() -> None:
    (drain,) = [
        option.default
        for options in OPTIONS.values()
        for option in options
        if option.name == "drain_timeout"
    ]
    for values, least in (
        (MINIMAL, drain),
        (FULL, 45.5),
        (changed(MINIMAL, "config/work/drain_timeout", 0), 0),
    ):
        for pod in (pod for thing in things(values) for pod in pod_specs(thing)):
            assert pod["terminationGracePeriodSeconds"] >= least + 30
    given = changed(MINIMAL, "terminationGracePeriodSeconds", 31)
    assert (
        only(given, "Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 31
    )


def test_names_stay_short_enough() -> None:
    for thing in things({**FULL, "fullnameOverride": "a" * 43}):
        # A CronJob's jobs get eleven letters more
        assert len(thing["metadata"]["name"]) <= (52 if thing["kind"] == "CronJob" else 63)


def written(values: Values) -> str:
    """The configuration file."""
    text: str = only(values, "ConfigMap", NAME)["data"]["image-volume-worker.conf"]
    return text


def another(option: cfg.Opt) -> object:
    """A value of this option that is not its default."""
    match option.type:
        case types.Boolean():
            return not option.default
        case types.Integer() | types.Float():
            most = option.type.max
            return most if most is not None else option.default + 1_000_000
        case types.List():
            choices = getattr(option.type.item_type, "choices", None)
            return list(choices)[-2:] if choices else ["one", "a $two"]
        case _:
            choices = [
                choice
                for choice in getattr(option.type, "choices", None) or ()
                if choice != option.default
            ]
            return choices[-1] if choices else "of $its ${own} = # ; %s"


def test_every_option_reaches_the_program_as_it_is(tmp_path: Path) -> None:
    config = {
        group.name: {
            option.name: another(option)
            for option in options
            if not option.secret and (group.name, option.name) not in writer.OWN
        }
        for group, options in OPTIONS.items()
    }
    # Other formats need another strategy
    target = {option.name: another(option) for option in TARGET_OPTIONS} | {"disk_formats": ["raw"]}
    # Two targets are never the same place
    other = target | {"volume_type": "other", "glance_store": "other"}
    values = {
        **MINIMAL,
        "config": config,
        "targets": {"b": target, "a": other},
        "containerPort": 1234,
    }
    file = tmp_path / "worker.conf"
    file.write_text(written(values))
    conf = cfg.ConfigOpts()
    settings.register(conf)
    for name in ("a", "b"):
        conf.register_opts(TARGET_OPTIONS, group=cfg.OptGroup(f"target:{name}"))
    conf([], default_config_files=[str(file)], default_config_dirs=[])
    for group, options in {**config, "target:a": other, "target:b": target}.items():
        assert {name: read(conf, group, name) for name in options} == options
    assert conf.prewarm.targets == ["a", "b"]
    assert conf.probes.bind == "0.0.0.0:1234"


class Pod:
    """What a pod would find, in a folder: files under their paths, the environment, the command."""

    def __init__(self, folder: Path, made: list[Thing], spec: Mapping[str, Any]) -> None:
        self._folder = folder
        held = {(thing["kind"], thing["metadata"]["name"]): thing for thing in made}
        (container,) = spec["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        for volume in spec["volumes"]:
            files: dict[str, str] = {}
            if "secret" in volume:
                data = held["Secret", volume["secret"]["secretName"]]["stringData"]
                files = {item["path"]: data[item["key"]] for item in volume["secret"]["items"]}
            elif ("ConfigMap", volume.get("configMap", {}).get("name")) in held:
                files = held["ConfigMap", volume["configMap"]["name"]]["data"]
            place = folder / mounts[volume["name"]].lstrip("/")
            place.mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                (place / name).write_text(text)
        self._paths = sorted(mounts.values())
        assert container["command"] == ["image-volume-worker"]
        self.command = [
            sys.executable,
            "-m",
            "worker",
            *(self._moved(word) for word in container["args"]),
        ]
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("OS_")
        }
        for variable in container["env"]:
            if "value" in variable:
                value = variable["value"]
            else:
                ref = variable["valueFrom"]["secretKeyRef"]
                value = held["Secret", ref["name"]]["stringData"][ref["key"]]
            self.environment[variable["name"]] = self._moved(value)

    def _moved(self, word: str) -> str:
        inside = any(word == path or word.startswith(f"{path}/") for path in self._paths)
        return str(self._folder / word.lstrip("/")) if inside else word

    def run(self) -> subprocess.CompletedProcess[str]:
        """The command, to its end."""
        return subprocess.run(
            self.command,
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


# Without what this machine has not: the CA
STARTED: Values = {**FULL, "extraEnv": []}


@pytest.mark.parametrize(
    ("name", "status"), [("resync", 1), ("replay", 1), ("cron", 1), ("doctor", 3)], ids=str
)
def test_the_jobs_fail_only_because_nobody_answers(tmp_path: Path, name: str, status: int) -> None:
    made = things(STARTED)
    (spec,) = [
        pod for thing in made for pod in pod_specs(thing) if pod["containers"][0]["name"] == name
    ]
    pod = Pod(tmp_path, made, spec)
    if name == "replay":
        shutil.copy(
            ROOT / "tests/fixtures/notifications/volume-from-image-cloned.jsonl",
            tmp_path / "captures",
        )
    ended = pod.run()
    # 2 would be wrong usage, or a configuration that is refused
    assert ended.returncode == status, ended.stderr
    assert "Connection refused" in ended.stdout + ended.stderr


def test_what_only_the_program_can_refuse_it_does(tmp_path: Path) -> None:
    made = things(changed(STARTED, "config/work", {"backoff_min": 60, "backoff_max": 30}))
    (spec,) = [pod for thing in made if thing["kind"] == "Deployment" for pod in pod_specs(thing)]
    ended = Pod(tmp_path, made, spec).run()
    assert ended.returncode == 2
    assert "[work] backoff_max is below backoff_min" in ended.stderr


def test_the_worker_starts_answers_its_probes_and_stops(tmp_path: Path) -> None:
    port = free_port()
    made = things({**STARTED, "containerPort": port})
    (spec,) = [pod for thing in made if thing["kind"] == "Deployment" for pod in pod_specs(thing)]
    (container,) = spec["containers"]
    pod = Pod(tmp_path, made, spec)
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            pod.command, env=pod.environment, cwd=ROOT, stdout=out, stderr=out
        )
    try:
        until = time.monotonic() + 60
        while answer(port, container["livenessProbe"]["httpGet"]["path"])[0] != 200:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        # Nobody is there to work with, and it says so
        status, said = answer(port, container["readinessProbe"]["httpGet"]["path"])
        assert status == 503
        assert json.loads(said)["problems"]
        assert answer(port, "/metrics")[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=spec["terminationGracePeriodSeconds"]) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
    assert "hush" not in log.read_text()


def answer(port: int, path: str) -> tuple[int, str]:
    """Status and text; 0 when nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as found:
            return found.status, found.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


def test_the_notes_say_what_to_look_at() -> None:
    with helm.Chart.load(CHART) as chart:
        (full, memory) = (
            next(
                text
                for path, text in chart.render(values, name="iv").items()
                if path.endswith("NOTES.txt")
            )
            for values in (FULL, MEMORY)
        )
    assert "helm test iv" in full
    assert "archive, fast" in full
    assert "port-forward" in full
    assert "in memory" not in full
    assert "in memory" in memory
    assert "Everybody in the cluster can reach port 9417" in memory


def test_the_examples_of_the_documentation() -> None:
    found = examples()
    assert list(found) == [
        "openstack-helm",
        "kolla-ansible",
        "A plain RabbitMQ",
        "One worker, lanes in memory",
    ]
    for values in found.values():
        for thing in things(values):
            if thing["kind"] not in BY_HAND:
                kubernetes_validate.validate(thing, KUBERNETES[-1], strict=True)


def test_it_can_be_packaged(tmp_path: Path) -> None:
    packed = Path(helm.package(CHART, destination=tmp_path))
    with helm.Chart.load(packed) as chart:
        names = {file["name"] for file in chart.files}
        made = chart.render(FULL, name="iv")
    assert {"files/prometheus-rules.yaml", "files/dashboard.json", "README.md"} <= names
    assert made
