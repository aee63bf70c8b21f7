"""What doctor says of each answer that it may get: every verdict, each with what to do."""

from __future__ import annotations

import http.server
import json
import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.configurations import GOOD, load
from worker.broker.inspect import Depth, Look
from worker.broker.url import parse
from worker.core.cloud import Location, Store, Volume
from worker.core.errors import Blocked, Misconfigured, NotFound, Temporary
from worker.core.pool import Pool, VolumeType
from worker.core.target import TAG, Policy, Reclaiming, Target, Uploads
from worker.diagnose.check import Check
from worker.diagnose.doctor import brokers, cinder, configuration, daemon, glance, login, pools
from worker.diagnose.doctor.facts import Facts
from worker.diagnose.doctor.management import Managed, Management, Rules, _would_apply
from worker.diagnose.doctor.untold import Untold, ask, tell
from worker.openstack.survey import Clock, Identity, Limit, Service, Shown
from worker.settings import Settings

URL = "rabbit://u:s3cret@one:5672,u:s3cret@two:5672/"
QUEUE = "image-volume-worker"
AWAY = Untold(reason="image: no answer")
REFUSED = Untold(reason="image: GET /x: 403 policy", refused=True)
TARGET = Target(name="fast", volume_type="ssd")
STORES = (Store(id="file", type="file"), Store(id="cinder-fast", type="cinder", volume_type="ssd"))
TYPE = VolumeType(id="t", name="ssd", specs={"volume_backend_name": "fast"})
POOL = Pool(name="host@fast#fast", backend_name="fast", free=50.0, total=100.0)
SECOND = replace(POOL, name="host@fast#two", capabilities={"pool_name": "two"})
SHOWN = Shown(
    id="i",
    status="active",
    owner="alice",
    locations=False,
    direct_url=False,
    stores=frozenset({"file"}),
)
IDENTITY = Identity(project_id="internal", roles=frozenset({"admin", "service"}))
IMAGE = "11111111-1111-4111-8111-111111111111"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(
        tmp_path,
        GOOD | {"notifications": {"transport_urls": URL}, "work": {"url": "amqp://u:s3cret@one/w"}},
    )


def judged(check: Check, verdict: str, *words: str) -> None:
    assert check.verdict == verdict, check
    for word in words:
        assert word in check.detail, check
    assert check.advice or verdict in ("ok", "skipped"), check
    assert "\n" not in check.detail + check.advice
    assert "s3cret" not in check.detail + check.advice


def named(checks: Iterable[Check]) -> dict[str, Check]:
    found = list(checks)
    assert len({check.name for check in found}) == len(found)
    return {check.name: check for check in found}


# ---- configuration


def test_a_configuration_without_contradictions(settings: Settings) -> None:
    (only,) = configuration.checks(settings, ["/etc/worker.conf"])
    judged(only, "ok", "/etc/worker.conf", "2 targets (fast, slow)")
    (only,) = configuration.checks(settings, [])
    judged(only, "ok", "environment")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"work_url": "memory://", "resync_on_start": False}, "nothing looks for the lost ones"),
        (
            {"transport_urls": ("rabbit://u@one/x", "rabbit://u@two,u@one/x")},
            "names a vhost twice (number 1)",
        ),
        ({"work_url": "amqp://u@two/"}, "on a vhost of the services"),
        ({"priorities": ("error",)}, "lacks info"),
        (
            {"policy": Policy(projects=frozenset({"p"}), exclude_projects=frozenset({"p"}))},
            "both name p",
        ),
        ({"policy": Policy(visibilities=frozenset())}, "visibilities is empty"),
        (
            {"targets": (replace(TARGET, max_count=1),), "switched_off": frozenset({"reclaim"})},
            "fast: a full budget",
        ),
        ({"reclaiming": Reclaiming(dry_run=True)}, "nothing is deleted"),
    ],
)
def test_options_that_contradict_each_other(
    settings: Settings, changes: Mapping[str, Any], word: str
) -> None:
    _, *found = configuration.checks(replace(settings, **changes), [])
    (only,) = found
    judged(only, "warn", word)


# ---- brokers


def seen(**changes: Any) -> Look:
    queues = {
        QUEUE: Depth(consumers=1),
        "notifications.info": Depth(),
        "notifications.error": Depth(),
    }
    found = Look(
        broker=parse(URL),
        version="3.10.8",
        cluster="rabbit@one",
        exchanges=("glance", "openstack"),
        queues=queues,
    )
    return replace(found, **changes)


@pytest.mark.parametrize(
    ("look", "name", "verdict", "word"),
    [
        (seen(), "", "ok", "one:5672,two:5672/: RabbitMQ 3.10.8"),
        (
            seen(away={"one:5672": "refused", "two:5672": "time-out"}),
            "",
            "fail",
            "one:5672: refused; two:5672: time",
        ),
        (
            seen(away={"two:5672": "time-out"}),
            " hosts",
            "warn",
            "1 of 2 hosts do not let us in: two:5672: time-out",
        ),
        (seen(), " exchanges", "ok", "glance, openstack"),
        (seen(exchanges=()), " exchanges", "warn", "none of glance, openstack, cinder"),
        (seen(version="3.7.28"), " version", "fail", "no quorum queues"),
        (seen(), " queue", "ok", "0 messages, 1 consumers"),
        (seen(queues={}), " queue", "warn", "not there"),
        (seen(queues={QUEUE: Depth(messages=7)}), " queue", "warn", "7 messages, 0 consumers"),
        (
            seen(queues={QUEUE: Depth(messages=20_000, consumers=1)}),
            " queue",
            "warn",
            "20000 messages",
        ),
        (seen(queues={QUEUE: Depth(problem="node is down")}), " queue", "fail", "node is down"),
        (
            seen(refused="the queue q was declared otherwise: x-expires"),
            " queue",
            "fail",
            "otherwise",
        ),
        (seen(refused="access to queue refused"), " queue", "fail", "refused"),
        (seen(), " notifications.info", "ok", "0 messages"),
        (
            seen(queues={"notifications.info": Depth(messages=9)}),
            " notifications.info",
            "warn",
            "nobody drains it",
        ),
        (
            seen(queues={"notifications.info": Depth(messages=10_001, consumers=1)}),
            " notifications.info",
            "warn",
            "10001 messages",
        ),
        (
            seen(queues={"notifications.info": Depth(problem="gone")}),
            " notifications.info",
            "warn",
            "gone",
        ),
        (seen(), " policies", "skipped", "of this cluster (rabbit@one)"),
    ],
)
def test_a_broker_of_notifications(
    settings: Settings, look: Look, name: str, verdict: str, word: str
) -> None:
    found = named(brokers.notifications("n", look, settings, None))
    judged(found[f"n{name}"], verdict, word)


def test_a_broker_that_is_away_is_one_check(settings: Settings) -> None:
    gone = seen(away={"one:5672": "refused", "two:5672": "refused"})
    assert [check.name for check in brokers.notifications("n", gone, settings, None)] == ["n"]
    assert [check.name for check in brokers.lanes(gone, settings, [], "d", None)] == ["lanes"]


def test_a_classic_queue_does_on_an_old_broker(settings: Settings) -> None:
    old = replace(settings, queue_type="classic")
    assert "n version" not in named(brokers.notifications("n", seen(version="3.7.28"), old, None))


def test_advice_on_a_refusal_says_what_was_refused(settings: Settings) -> None:
    for said, word in (
        ("the queue q was declared otherwise: x-expires", "delete_queue"),
        ("the broker takes no messages: low on memory", "memory or disk"),
        ("access to vhost refused", "set_permissions"),
    ):
        found = named(brokers.notifications("n", seen(refused=said), settings, None))
        assert word in found["n queue"].advice


LANES = [f"{QUEUE}.upload", f"{QUEUE}.prewarm.fast"]
DEAD = f"{QUEUE}.dead"
SERVED = {name: Depth(messages=2, consumers=1) for name in LANES}


@pytest.mark.parametrize(
    ("look", "name", "verdict", "word"),
    [
        (seen(queues=SERVED), "lanes", "ok", "RabbitMQ 3.10.8"),
        (seen(away={"one": "no", "two": "no"}), "lanes", "fail", "one: no"),
        (seen(version="3.9.29"), "lanes version", "fail", "can't expire"),
        (seen(queues=SERVED), "lanes rights", "ok", "configure, write, read"),
        (
            seen(refused="configure access refused"),
            "lanes rights",
            "fail",
            "configure access refused",
        ),
        (seen(queues=SERVED), "lanes queues", "ok", "2 lanes, each with a worker; 4 jobs wait"),
        (seen(queues={}), "lanes queues", "warn", "no worker has run yet"),
        (
            seen(queues=SERVED | {LANES[1]: Depth(messages=3)}),
            "lanes queues",
            "warn",
            "serves prewarm.fast; 5 jobs",
        ),
        (
            seen(queues=SERVED | {LANES[0]: Depth(problem="no leader")}),
            "lanes queues",
            "fail",
            "no leader",
        ),
        (seen(queues=SERVED), "dead letters", "ok", "none"),
        (seen(queues={DEAD: Depth()}), "dead letters", "ok", "none"),
        (seen(queues={DEAD: Depth(messages=3)}), "dead letters", "warn", "3"),
        (seen(queues={DEAD: Depth(problem="no leader")}), "dead letters", "fail", "no leader"),
    ],
)
def test_the_broker_of_the_lanes(
    settings: Settings, look: Look, name: str, verdict: str, word: str
) -> None:
    judged(named(brokers.lanes(look, settings, LANES, DEAD, None))[name], verdict, word)


def test_the_lanes_are_those_that_a_worker_opens(settings: Settings) -> None:
    assert settings.lanes == ["upload", "reclaim", "prewarm.fast", "prewarm.slow"]
    assert "upload" not in replace(settings, switched_off=frozenset({"upload"})).lanes


TTL = Rules(policies=("ttl",), losing={"message-ttl": 70_000})
OURS = Rules(policies=("long",), losing={"max-length": 100_000, "expires": 86_400_000})


@pytest.mark.parametrize(
    ("answer", "name", "verdict", "word"),
    [
        (Managed(rules={QUEUE: Rules()}), " policies", "ok", "none makes messages go away"),
        (Managed(rules={QUEUE: OURS}), " policies", "ok", "none makes messages go away"),
        (Managed(rules={QUEUE: TTL}), " policies", "warn", "message-ttl 70000 (policy ttl)"),
        (
            Managed(rules={QUEUE: Rules(losing={"max-length": 10})}),
            " policies",
            "warn",
            "max-length 10",
        ),
        (Managed(), " policies", "ok", "can't be told"),
        (Untold(reason="401"), " policies", "warn", "401"),
        (Managed(alarms=()), " alarms", "ok", "none"),
        (Managed(alarms=("a: memory",)), " alarms", "fail", "a: memory"),
        (Managed(alarms=None), " alarms", "skipped", "monitoring"),
        (Managed(bound=frozenset({"glance", "openstack"})), " bindings", "ok", "glance, openstack"),
        (Managed(bound=frozenset({"glance"})), " bindings", "warn", "not bound to openstack"),
        (Managed(bound=None), " bindings", "skipped", "not told"),
    ],
)
def test_what_the_management_api_tells(
    settings: Settings, answer: Managed | Untold, name: str, verdict: str, word: str
) -> None:
    judged(named(brokers.notifications("n", seen(), settings, answer))[f"n{name}"], verdict, word)


def test_a_policy_that_throws_jobs_away_is_a_failure(settings: Settings) -> None:
    answer = Managed(rules={LANES[1]: TTL, DEAD: Rules()})
    found = named(brokers.lanes(seen(queues=SERVED), settings, LANES, DEAD, answer))
    judged(found["lanes policies"], "fail", f"jobs are thrown away: {LANES[1]}: message-ttl 70000")
    assert "lanes bindings" not in found


def test_a_queue_that_a_policy_bounds_needs_no_reader(settings: Settings) -> None:
    full = seen(queues={"notifications.info": Depth(messages=9)})
    answer = Managed(rules={"notifications.info": TTL})
    found = named(brokers.notifications("n", full, settings, answer))
    judged(found["n notifications.info"], "ok", "bounded by policy ttl")


def test_policies_that_would_apply_to_a_queue_that_is_not_there() -> None:
    def policy(
        name: str, pattern: str, priority: int = 0, to: str = "queues", **definition: int
    ) -> dict[str, Any]:
        definition = {key.replace("_", "-"): value for key, value in definition.items()}
        return {
            "name": name,
            "pattern": pattern,
            "priority": priority,
            "apply-to": to,
            "definition": definition,
        }

    users = [
        policy("low", ".*", 0, message_ttl=1),
        policy("high", "^image", 5, message_ttl=9, max_length=5),
        policy("exchanges", ".*", 9, "exchanges"),
        policy("others", "^nova", 9, message_ttl=2),
        policy("broken", "(", 9),
    ]
    operators = [policy("operator", ".*", max_length=3)]
    found = _would_apply(QUEUE, (users, operators))
    assert found == Rules(policies=("high", "operator"), losing={"message-ttl": 9, "max-length": 3})
    assert _would_apply("cinder", ((), ())) == Rules()


def test_a_management_api_is_named_without_its_password() -> None:
    api = Management("http://u:s3cret@[::1]:1/")
    assert api.name == "http://[::1]:1"
    answer = tell(api.cluster)
    assert isinstance(answer, Untold)
    assert "s3cret" not in answer.reason


# ---- the daemon


def test_a_worker_that_answers(settings: Settings) -> None:
    judged(daemon.check(None, None), "skipped", "bind is empty")
    judged(daemon.check(("h", 1), None), "skipped", "none answers at h:1")
    judged(daemon.check(("h", 1), daemon.Heard()), "ok", "is ready")
    judged(
        daemon.check(("h", 1), daemon.Heard(problems={"cloud": "away"})),
        "warn",
        "not ready: cloud: away",
    )
    assert daemon.listen(None) is None


@pytest.mark.parametrize("ready", [True, False])
def test_what_a_worker_says_is_heard(ready: bool) -> None:
    answers = {
        "/readyz": json.dumps({"ok": ready, "problems": {} if ready else {"lanes": "closed"}}),
        "/metrics": "# TYPE image_volume_worker_notifications_total counter\n"
        'image_volume_worker_notifications_total{event_type="image_volume_cache.miss",outcome="routed"} 3\n'
        'image_volume_worker_notifications_total{event_type="image.update",outcome="routed"} 9\n'
        "# TYPE image_volume_worker_last_notification_timestamp_seconds gauge\n"
        'image_volume_worker_last_notification_timestamp_seconds{service="image"} 1700000000\n',
        "/status.json?jobs=0": json.dumps({"replicas": [{"host": "a"}, {"host": "b"}]}),
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if ready or self.path != "/readyz" else 503)
            self.end_headers()
            self.wfile.write(answers[self.path].encode())

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        heard = daemon.listen(("127.0.0.1", server.server_port))
        server.shutdown()
        assert heard is not None
        assert heard.events == {"image_volume_cache.miss": 3.0}
        assert heard.last == {"image": 1_700_000_000.0}
        assert not heard.alone
        assert heard.problems == ({} if ready else {"lanes": "closed"})


def test_a_service_that_sends_no_notifications() -> None:
    def checks(*, image: float, volume: float, **fields: object) -> list[Check]:
        last = {"image": 1000.0, "block-storage": 1000.0}
        heard = replace(daemon.Heard(last=last), **fields)  # type: ignore[arg-type]
        shown = replace(SHOWN, created_epoch=image)
        made = replace(ENTRY, created_epoch=volume)
        return list(daemon.notifications(heard, (shown,), (made,)))

    (check,) = checks(image=1030.0, volume=900.0)
    judged(check, "ok", "heard of Glance and Cinder")
    (check,) = checks(image=1400.0, volume=900.0)
    judged(check, "warn", "an image was made 400 s after the worker last heard of Glance")
    assert "every glance-api" in check.advice
    (check,) = checks(image=0.0, volume=1400.0)
    judged(check, "warn", "a volume was made 400 s after the worker last heard of Cinder")
    (check,) = checks(image=1400.0, volume=1400.0, alone=False)
    judged(check, "skipped", "several replicas")
    assert checks(image=1400.0, volume=0.0, last={}) == []
    assert list(daemon.notifications(None, (), ())) == []


def test_nobody_or_somebody_else_at_the_probes() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        assert daemon.listen(("127.0.0.1", server.server_port)) is None
        server.shutdown()
    assert daemon.listen(("127.0.0.1", 1)) is None


# ---- the login


def facts(**changes: Any) -> Facts:
    """The answers of a cloud where all is well."""
    well = Facts(
        identity=IDENTITY,
        clocks={name: Clock(least=-0.5, most=0.5) for name in ("keystone", "glance", "cinder")},
        image_api=(2, 17),
        stores=STORES,
        methods=frozenset({"copy-image"}),
        images=(SHOWN,),
        located=(Location(url="file:///x"),),
        volume_api=(3, 71),
        types=(TYPE,),
        encrypted={"ssd": False},
        pools=(POOL,),
        services=(Service(binary="cinder-volume", host="h@fast", up=True, enabled=True),),
        zones=frozenset({"nova"}),
        limits={},
        volume_witness="11111111-1111-4111-8111-111111111111",
        witness="0000000a-0000-4000-8000-000000000000",
        volumes=(),
    )
    return replace(well, **changes)


def identity(*roles: str, project: str = "internal") -> Identity:
    return Identity(project_id=project, roles=frozenset(roles))


@pytest.mark.parametrize(
    ("changes", "name", "verdict", "word"),
    [
        ({}, "login", "ok", "internal owns"),
        ({"identity": Untold(reason="401")}, "login", "fail", "401"),
        ({"identity": identity("admin", project="")}, "login", "fail", "not scoped"),
        ({}, "roles", "ok", "admin, service"),
        ({"identity": identity("member")}, "roles", "fail", "lacks admin"),
        ({}, "rights in glance", "ok", "1 of the 1 newest images are of other projects"),
        ({"images": ()}, "rights in glance", "ok", "no image"),
        ({}, "private images", "ok", "sees those of other projects"),
        ({"witness": ""}, "private images", "warn", "sees none of another project"),
        ({"witness": AWAY}, "private images", "warn", "no answer"),
        ({"stores": REFUSED}, "rights in glance", "fail", "403"),
        ({"images": REFUSED}, "rights in glance", "fail", "403"),
        ({"images": AWAY}, "rights in glance", "warn", "no answer"),
        ({}, "rights to locations", "ok", "reads locations"),
        ({"located": REFUSED}, "rights to locations", "fail", "403"),
        ({"located": AWAY}, "rights to locations", "warn", "can't be tried"),
        ({"image_api": AWAY}, "rights to locations", "warn", "can't be tried"),
        ({"located": None}, "rights to locations", "ok", "no image to try it on"),
        (
            {"image_api": (2, 15), "located": None},
            "rights to locations",
            "ok",
            "no New Location API",
        ),
        ({"identity": identity("admin")}, "rights to locations", "fail", "no upload is completed"),
        ({}, "rights in cinder", "ok", "volumes of other projects"),
        ({"volume_witness": REFUSED}, "rights in cinder", "fail", "403"),
        ({"volume_witness": AWAY}, "rights in cinder", "warn", "no answer"),
        ({"volume_witness": ""}, "rights in cinder", "warn", "shows no volume of another project"),
        ({}, "clock glance", "ok", "within 0.5 s"),
        ({"clocks": {}}, "clock glance", "warn", "not looked at"),
        (
            {"clocks": {"glance": Clock(least=2.5, most=3.5)}},
            "clock glance",
            "warn",
            "2.5 s ahead of",
        ),
        (
            {"clocks": {"glance": Clock(least=-9.0, most=-7.9)}},
            "clock glance",
            "warn",
            "7.9 s behind",
        ),
        (
            {"clocks": {"glance": Clock(least=1.0, most=12.0)}},
            "clock glance",
            "ok",
            "within 12.0 s",
        ),
    ],
)
def test_the_login(
    settings: Settings, changes: Mapping[str, Any], name: str, verdict: str, word: str
) -> None:
    judged(named(login.checks(facts(**changes), settings))[name], verdict, word)


def test_without_uploads_the_role_service_is_wanted_by_what_it_does(settings: Settings) -> None:
    quiet = replace(settings, switched_off=frozenset({"upload"}))
    poor = facts(identity=identity("admin"), located=None)
    judged(
        named(login.checks(poor, quiet))["rights to locations"], "warn", "lacks the role service"
    )
    able = facts(identity=identity("admin"))
    judged(named(login.checks(able, quiet))["rights to locations"], "ok", "reads locations")


def test_another_role_than_admin_does(settings: Settings) -> None:
    least = replace(settings, admin_role="image_volume_worker")
    found = named(login.checks(facts(identity=identity("image_volume_worker", "service")), least))
    assert {check.verdict for check in found.values()} == {"ok"}


# ---- Glance


@pytest.mark.parametrize(
    ("changes", "name", "verdict", "word"),
    [
        ({}, "glance", "ok", "API 2.17, has the New"),
        ({"image_api": (2, 15)}, "glance", "ok", "API 2.15, has not"),
        ({"image_api": AWAY}, "glance", "fail", "no answer"),
        ({}, "stores", "ok", "cinder-fast (cinder, ssd)"),
        ({"stores": (Store(id="x"),)}, "stores", "ok", "type unknown"),
        ({"stores": ()}, "stores", "warn", "no multi-store"),
        ({"types": ()}, "stores", "warn", "cinder-fast wants volume type ssd"),
        ({"stores": AWAY}, "stores", "warn", "no answer"),
        ({"stores": REFUSED}, "stores", "warn", "403"),
        ({}, "copy-image", "ok", "copy-image"),
        ({"methods": frozenset()}, "copy-image", "fail", "fast can't do without"),
        ({"methods": frozenset(), "stores": STORES[:1]}, "copy-image", "ok", "no target needs it"),
        ({"methods": AWAY}, "copy-image", "warn", "no answer"),
        ({}, "show_multiple_locations", "ok", "off"),
        ({"images": ()}, "show_multiple_locations", "skipped", "without an image"),
        ({"images": AWAY}, "show_multiple_locations", "warn", "no answer"),
        (
            {"images": (replace(SHOWN, locations=True),)},
            "show_multiple_locations",
            "warn",
            "OSSN-0090",
        ),
        (
            {"images": (replace(SHOWN, direct_url=True),)},
            "show_multiple_locations",
            "warn",
            "show_image_direct_url on",
        ),
        (
            {"image_api": (2, 15)},
            "show_multiple_locations",
            "fail",
            "uploads by the old location API",
        ),
        ({"image_api": (2, 15)}, "show_multiple_locations", "fail", "target fast (strategy store)"),
        ({"image_api": (2, 15), "images": ()}, "show_multiple_locations", "warn", "needs it"),
        ({}, "uploads", "ok", "by the New"),
        ({"image_api": (2, 15)}, "uploads", "warn", "by the old"),
        ({"image_api": AWAY}, "uploads", "warn", "can't be told"),
        ({"stores": STORES[:1]}, "uploads", "warn", "no cinder store"),
        (
            {"kept": {"s": (Volume(id="v", name="", status="", volume_type="", size=1),)}},
            "store s",
            "ok",
            "(1 looked",
        ),
        ({"kept": {"s": ()}}, "store s", "ok", "can't be told yet"),
        ({"kept": {"s": (Untold(reason="404", missing=True),)}}, "store s", "warn", "404"),
        ({"kept": {"s": (AWAY,)}}, "store s", "warn", "no answer"),
    ],
)
def test_glance(
    settings: Settings, changes: Mapping[str, Any], name: str, verdict: str, word: str
) -> None:
    only = replace(settings, targets=(TARGET,))
    judged(named(glance.checks(facts(**changes), only))[name], verdict, word)


def test_a_store_in_another_project(settings: Settings) -> None:
    ours = Volume(id="v", name="", status="", volume_type="", size=1)
    theirs = replace(ours, foreign=True, project_id="service")
    judged(
        glance.store_project("s", (theirs,), "internal"),
        "fail",
        "1 of 1",
        "project service, not of ours (internal)",
    )
    judged(glance.store_project("s", (theirs, ours, AWAY), "internal"), "warn", "1 of 2")


def test_a_target_that_needs_the_old_locations(settings: Settings) -> None:
    target = replace(TARGET, strategy="location", glance_store="cinder-fast")
    need = replace(settings, targets=(target,))
    off = named(glance.checks(facts(), need))["show_multiple_locations"]
    judged(off, "fail", "off, but target fast (strategy location) needs it")
    on = named(glance.checks(facts(images=(replace(SHOWN, locations=True),)), need))[
        "show_multiple_locations"
    ]
    judged(on, "warn", "OSSN-0090")
    assert "needs it" in on.advice
    assert "location_api = auto" in off.advice
    old = named(glance.checks(facts(image_api=(2, 15)), need))["show_multiple_locations"]
    assert "switch it on" in old.advice


@pytest.mark.parametrize(
    ("changes", "imports", "verdict", "word"),
    [
        ({"switched_off": frozenset({"upload"})}, True, "ok", "switched off"),
        ({"uploads": Uploads(location_api="new")}, False, "fail", "older than 2.17"),
        ({"uploads": Uploads(location_api="old")}, True, "warn", "by the old"),
    ],
)
def test_uploads(
    settings: Settings, changes: Mapping[str, Any], imports: bool, verdict: str, word: str
) -> None:
    judged(glance.uploads(replace(settings, **changes), STORES, imports=imports), verdict, word)


# ---- Cinder


@pytest.mark.parametrize(
    ("changes", "stores", "verdict", "word"),
    [
        ({}, STORES, "ok", "store cinder-fast"),
        ({"volume_type": "hdd"}, STORES, "fail", "no volume type hdd"),
        ({"glance_store": "nowhere"}, STORES, "fail", "nowhere"),
        ({"strategy": "store"}, STORES[:1], "fail", "no cinder store"),
        ({"strategy": "location", "glance_store": "cinder-fast"}, STORES, "warn", "location"),
        ({"strategy": "cache"}, STORES, "ok", "cache"),
        ({}, STORES[:1], "ok", "cache"),
        (
            {"strategy": "native", "native_stores": ("rbd",)},
            (Store(id="rbd"),),
            "ok",
            "native of rbd",
        ),
        ({}, (Store(id="x"),), "fail", "set strategy"),
    ],
)
def test_where_a_target_is(
    changes: dict[str, Any], stores: tuple[Store, ...], verdict: str, word: str
) -> None:
    judged(cinder.place(replace(TARGET, **changes), {"ssd"}, stores), verdict, word)


DOWN = Service(binary="cinder-volume", host="h@slow", up=False, enabled=True)


@pytest.mark.parametrize(
    ("changes", "name", "verdict", "word"),
    [
        ({}, "cinder", "ok", "API 3.71, 1 volume types"),
        ({"volume_api": AWAY}, "cinder", "ok", "1 volume types"),
        ({"types": AWAY}, "cinder", "fail", "no answer"),
        ({}, "cinder services", "ok", "1 up"),
        ({"services": (DOWN,)}, "cinder services", "warn", "down: cinder-volume on h@slow"),
        (
            {"services": (replace(DOWN, up=True, enabled=False),)},
            "cinder services",
            "warn",
            "disabled",
        ),
        ({"services": (replace(DOWN, binary="cinder-backup"),)}, "cinder services", "ok", "0 up"),
        ({"services": REFUSED}, "cinder services", "skipped", "administrator"),
        ({"services": AWAY}, "cinder services", "warn", "no answer"),
        ({}, "cloning", "skipped", "no API tells"),
        ({}, "quota", "ok", "no limit"),
        ({"limits": REFUSED}, "quota", "warn", "403"),
        ({"limits": AWAY}, "quota", "warn", "no answer"),
        ({"limits": {"volumes": Limit(limit=100, used=50)}}, "quota", "ok", "volumes 50 of 100"),
        (
            {"limits": {"volumes": Limit(limit=100, used=91)}},
            "quota",
            "warn",
            "nearly used up: volumes 91 of 100",
        ),
        ({"limits": {"volumes": Limit(limit=10, used=1)}}, "quota", "warn", "volumes 1 of 10"),
        (
            {"limits": {"gigabytes": Limit(limit=100, used=91)}},
            "quota",
            "warn",
            "gigabytes 91 of 100",
        ),
        (
            {"limits": {"gigabytes": Limit(limit=100, used=100)}},
            "quota",
            "fail",
            "used up: gigabytes 100 of 100",
        ),
        ({"limits": {"gigabytes": Limit(limit=0, used=0)}}, "quota", "fail", "gigabytes 0 of 0"),
        (
            {"limits": {"volumes_ssd": Limit(limit=5, used=6)}},
            "target fast quota",
            "fail",
            "volumes_ssd 6 of 5",
        ),
        ({"limits": {"volumes_ssd": Limit(limit=5, used=6)}}, "quota", "ok", "no limit"),
        ({"types": AWAY}, "target fast", "warn", "Cinder does not answer"),
        ({"stores": AWAY}, "target fast", "warn", "Glance does not answer"),
        ({"encrypted": {"ssd": True}}, "target fast encryption", "fail", "encrypted"),
        ({}, "target fast pools", "ok", "host@fast#fast"),
        ({"pools": ()}, "target fast pools", "fail", "no pool has volume_backend_name fast"),
        ({"pools": REFUSED}, "target fast pools", "skipped", "administrator"),
        ({"pools": AWAY}, "target fast pools", "warn", "no answer"),
        (
            {"pools": (POOL, replace(POOL, name="two@fast#fast"))},
            "target fast pools",
            "warn",
            "no way to choose",
        ),
        (
            {
                "pools": (
                    replace(POOL, clones_across=True),
                    replace(POOL, name="host@fast#x", clones_across=True),
                )
            },
            "target fast pools",
            "ok",
            "host@fast#fast, host@fast#x",
        ),
        (
            {
                "pools": (
                    replace(POOL, clones_across=True),
                    replace(POOL, name="b@fast#x", clones_across=True),
                )
            },
            "arrays",
            "warn",
            "b@fast (target fast); host@fast (target fast)",
        ),
        (
            {"pools": (replace(POOL, capabilities={"pool_name": "one"}), SECOND)},
            "target fast pools",
            "ok",
            "chooses each by a private volume type",
        ),
        ({}, "target fast room", "ok", "room for 50 GiB"),
        ({"pools": (replace(POOL, free=None),)}, "target fast room", "skipped", "does not tell"),
        ({"pools": (replace(POOL, free=math.inf),)}, "target fast room", "ok", "no bound"),
        ({"pools": (replace(POOL, free=0.5),)}, "target fast room", "fail", "room for 0 GiB"),
        (
            {"pools": (replace(POOL, free=45.0, total=500.0),)},
            "target fast room",
            "warn",
            "has 45 of 500 GiB free",
        ),
        (
            {"pools": (replace(POOL, free=30.0),)},
            "target fast room",
            "warn",
            "would take 40 GiB more",
        ),
    ],
)
def test_cinder(
    settings: Settings, changes: Mapping[str, Any], name: str, verdict: str, word: str
) -> None:
    only = replace(settings, targets=(replace(TARGET, max_gigabytes=40),))
    judged(named(cinder.checks(facts(**changes), only, None))[name], verdict, word)


def test_what_is_there_already_counts_for_the_budget() -> None:
    marks = {TAG: "fast", f"{TAG}_origin": "prewarm"}
    there = Volume(
        id="v",
        name=f"image-{IMAGE}",
        status="available",
        volume_type="ssd",
        size=15,
        metadata=marks,
    )
    budget = replace(TARGET, max_gigabytes=40)
    judged(pools.room(budget, [replace(POOL, free=30.0)], ()), "warn", "40 GiB more")
    judged(pools.room(budget, [replace(POOL, free=30.0)], (there,)), "ok", "room for 30 GiB")


@pytest.mark.parametrize(
    ("zones", "verdict", "word"),
    [
        (frozenset({"a", "b"}), "ok", "a"),
        (frozenset({"b"}), "fail", "no zone a is available, only b"),
        (AWAY, "warn", ""),
    ],
)
def test_a_zone(zones: frozenset[str] | Untold, verdict: str, word: str) -> None:
    judged(cinder.zone(replace(TARGET, availability_zone="a"), zones), verdict, word)


ENTRY = Volume(
    id="v",
    name=f"image-{IMAGE}",
    status="available",
    volume_type="ssd",
    size=1,
    metadata={"readonly": "True"},
)


@pytest.mark.parametrize(
    ("volumes", "events", "verdict", "word"),
    [
        ((ENTRY,), None, "ok", "1 entries seen"),
        ((), None, "warn", "0 entries seen; no API tells"),
        ((replace(ENTRY, name="blank"),), None, "warn", "0 entries"),
        ((replace(ENTRY, volume_type="hdd"),), None, "warn", "0 entries"),
        (
            (),
            {"image_volume_cache.miss": 3.0, "image_volume_cache.evict": 0.0},
            "warn",
            "heard 3 miss",
        ),
        (AWAY, None, "warn", "no answer"),
    ],
)
def test_the_image_volume_cache(
    volumes: tuple[Volume, ...] | Untold,
    events: Mapping[str, float] | None,
    verdict: str,
    word: str,
) -> None:
    judged(cinder.cached(TARGET, volumes, events), verdict, word)


def test_only_a_target_of_the_cache_is_asked_about_it(settings: Settings) -> None:
    store = named(cinder.checks(facts(), replace(settings, targets=(TARGET,)), None))
    assert "target fast cache" not in store
    cached = named(
        cinder.checks(
            facts(), replace(settings, targets=(replace(TARGET, strategy="cache"),)), None
        )
    )
    assert "target fast cache" in cached


# ---- values and answers


@pytest.mark.parametrize(
    ("capabilities", "room"),
    [
        ({"free_capacity_gb": 40, "total_capacity_gb": 100}, 40),
        ({"free_capacity_gb": "40.5", "total_capacity_gb": "100", "reserved_percentage": 10}, 30.5),
        ({"free_capacity_gb": "infinite", "total_capacity_gb": "infinite"}, math.inf),
        ({"free_capacity_gb": "unknown", "total_capacity_gb": 100}, None),
        (
            {
                "free_capacity_gb": 40,
                "total_capacity_gb": 100,
                "thin_provisioning_support": True,
                "max_over_subscription_ratio": "2.0",
                "provisioned_capacity_gb": 150,
            },
            50,
        ),
        (
            {
                "free_capacity_gb": 10,
                "total_capacity_gb": 100,
                "thin_provisioning_support": True,
                "max_over_subscription_ratio": "2.0",
            },
            20,
        ),
    ],
)
def test_the_room_of_a_pool(capabilities: dict[str, Any], room: float | None) -> None:
    assert Pool.from_api({"name": "p", "capabilities": capabilities}).room == room


def test_a_limit_that_is_none() -> None:
    assert Limit.from_api({"limit": -1, "in_use": 3, "reserved": 1}).left == math.inf
    assert Limit.from_api({"limit": 5, "in_use": 3, "reserved": 1}).left == 1


@pytest.mark.parametrize(
    ("error", "refused", "missing", "word"),
    [
        (Blocked("403"), True, False, "403"),
        (NotFound("404"), False, True, "404"),
        (Temporary("no answer"), False, False, "no answer"),
        (KeyError("name"), False, False, "please report"),
    ],
)
async def test_no_failure_of_one_question_is_one_of_all(
    error: Exception, refused: bool, missing: bool, word: str
) -> None:
    def blocking() -> int:
        raise error

    async def asking() -> int:
        raise error

    for answer in (tell(blocking), await ask(asking)):
        assert isinstance(answer, Untold)
        assert (answer.refused, answer.missing) == (refused, missing)
        assert word in answer.reason


async def test_an_answer_is_what_it_is() -> None:
    async def asking() -> int:
        return 5

    assert await ask(asking) == tell(lambda: 5) == 5


def test_a_management_url_is_checked_and_its_password_not_told(tmp_path: Path) -> None:
    good = {
        "transport_urls": URL,
        "management_urls": "http://u:s3cret@one:15672, https://u:s3cret@two",
    }
    assert load(tmp_path, {**GOOD, "notifications": good}).management_urls == (
        "http://u:s3cret@one:15672",
        "https://u:s3cret@two",
    )
    for wrong in ("rabbit://u:s3cret@one", "http://u:s3cret@one:no", "http://"):
        with pytest.raises(Misconfigured) as error:
            load(tmp_path, {**GOOD, "notifications": {**good, "management_urls": wrong}})
        assert "management_urls" in str(error.value)
        assert "s3cret" not in str(error.value)
