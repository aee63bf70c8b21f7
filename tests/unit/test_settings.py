"""The configuration: what it comes to, and that a wrong one names every fault at once."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from tests.configurations import GOOD, load, load_text
from tests.worker_process import configuration
from worker import settings
from worker.core.errors import Misconfigured
from worker.diagnose.doctor.configuration import checks as configuration_checks
from worker.settings import Settings
from worker.settings.option import PARTS
from worker.settings.options import TABLE

ONE, TWO = "0" * 32, "1" * 32


def test_titles_without_options_mean_nothing(tmp_path: Path) -> None:
    # As in the sample, which people edit in place
    assert load_text(tmp_path, configuration(GOOD) + "\n[DEFAULT]\n[target:name]\n") == load(
        tmp_path, GOOD
    )


def test_a_target_that_is_not_named_is_switched_off_and_told(tmp_path: Path) -> None:
    loaded = load(tmp_path, GOOD | {"prewarm": {"targets": "fast"}})
    assert [target.name for target in loaded.targets] == ["fast"]
    assert loaded.warnings == ("[target:slow] is switched off: [prewarm] targets does not name it",)
    told = [check for check in configuration_checks(loaded, []) if check.verdict == "warn"]
    assert "[target:slow]" in "".join(check.detail for check in told)


def test_options_of_other_services_in_a_shared_file_are_left_alone(tmp_path: Path) -> None:
    shared: dict[str, dict[str, object]] = {
        "DEFAULT": {"debug": "true", "transport_url": "rabbit://x", "log_dir": "/var/log/kolla/x"},
        "keystone_authtoken": {"auth_url": "http://x"},
        "oslo_policy": {"policy_file": "x"},
    }
    loaded = load(tmp_path, GOOD | shared)
    assert (loaded.log_level, loaded.log_file) == (
        "debug",
        "/var/log/kolla/x/image-volume-worker.log",
    )
    plain = load(tmp_path, GOOD)
    assert replace(loaded, log_level=plain.log_level, log_file=plain.log_file) == plain


def test_the_folder_beside_a_file_is_read_with_it(tmp_path: Path) -> None:
    file = tmp_path / "worker.conf"
    file.touch()
    assert settings.config_dirs([], [str(file)]) == []
    (tmp_path / "worker.conf.d").mkdir()
    assert settings.config_dirs([], [str(file)]) == [f"{file}.d"]
    assert settings.config_dirs(["/else"], [str(file)]) == ["/else"]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    binary, folder = tmp_path / "binary.conf", tmp_path / "worker.conf.d"
    binary.write_bytes(b"[prewarm]\n\xa9")
    folder.mkdir()
    (folder / "latin [1].conf").write_bytes("ä".encode("latin-1"))
    (folder / "good.conf").write_text("# ä\n", encoding="utf-8")
    (folder / "no.text").write_bytes(b"\xff")
    found = list(settings.unreadable([str(binary)], [str(folder), str(tmp_path / "nowhere")]))
    assert len(found) == 3
    for said, path in zip(
        found, (tmp_path / "nowhere", binary, folder / "latin [1].conf"), strict=True
    ):
        assert str(path) in said


def test_a_good_one(tmp_path: Path) -> None:
    loaded = load(tmp_path, GOOD)
    fast, slow = loaded.targets
    assert (fast.name, fast.volume_type, fast.strategy, fast.max_concurrent) == (
        "fast",
        "ssd",
        "auto",
        4,
    )
    assert (slow.strategy, slow.disk_formats, slow.max_concurrent) == ("cache", {"raw", "qcow2"}, 2)
    assert loaded.work_url == "memory://"
    assert loaded.bind == ("127.0.0.1", 9417)


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("rabbit://a", ["rabbit://a"]),
        ("rabbit://a:b@h1:5672,a:b@h2:5672/v", ["rabbit://a:b@h1:5672,a:b@h2:5672/v"]),
        (
            "rabbit://a@h1,a@h2/g; rabbit://a@h1,a@h2/c",
            ["rabbit://a@h1,a@h2/g", "rabbit://a@h1,a@h2/c"],
        ),
        ("rabbit://a@h1/g,rabbit://a@h2/c", ["rabbit://a@h1/g", "rabbit://a@h2/c"]),
        ("rabbit://a@h1/g rabbit://a@h2/c", ["rabbit://a@h1/g", "rabbit://a@h2/c"]),
    ],
)
def test_several_brokers_of_several_hosts(tmp_path: Path, text: str, urls: list[str]) -> None:
    loaded = load(tmp_path, {**GOOD, "notifications": {"transport_urls": text}})
    assert list(loaded.transport_urls) == urls


def test_the_environment_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OS_WORK__MAX_ATTEMPTS", "7")
    monkeypatch.setenv("OS_PREWARM__EXCLUDE_PROJECTS", f"{ONE},{TWO}")
    loaded = load(tmp_path, GOOD)
    assert loaded.limits.max_attempts == 7
    assert loaded.policy.exclude_projects == {ONE, TWO}


@pytest.mark.parametrize(
    ("group", "options", "fault"),
    [
        ("notifications", {}, "transport_urls is empty"),
        ("notifications", {"transport_urls": "http://h"}, "http scheme"),
        ("notifications", {"transport_urls": "rabbit://u:p@h:99999/"}, "no host:port"),
        *(
            ("notifications", {"transport_urls": "rabbit://h", **options}, fault)
            for options, fault in (
                ({"exchanges": ""}, "exchanges is empty: nothing would be heard"),
                ({"topics": ""}, "topics is empty: nothing would be heard"),
                ({"priorities": ""}, "priorities is empty: nothing would be heard"),
                ({"priorities": "INFO, error"}, "priorities: 'INFO' is none of audit, critical"),
                ({"queue": ""}, "queue: '' is no name for a queue"),
                ({"queue": "amq.worker"}, "queue: 'amq.worker' is no name for a queue"),
                ({"queue": "q" * 129}, "is no name for a queue (1 to 128 bytes"),
            )
        ),
        ("work", {"url": "redis://h"}, "[work] url: redis scheme"),
        ("work", {"backoff_min": 10, "backoff_max": 5}, "backoff_max is below"),
        ("cloud", {"poll_min": 10, "poll_max": 5}, "poll_max is below"),
        ("cloud", {"poll_min": "soon"}, "poll_min"),
        ("cloud", {"api_timeout": "1e26"}, "[cloud] api_timeout: 1e+26 is not up to"),
        ("work", {"backoff_max": "nan"}, "[work] backoff_max: nan is no number"),
        ("resync", {"interval": "inf"}, "[resync] interval: inf is not up to"),
        ("prewarm", {"targets": ""}, "targets is empty"),
        ("prewarm", {"targets": "fast,slow,third"}, "[target:third] volume_type is missing"),
        ("prewarm", {"targets": "fast,slow,fast"}, "fast twice"),
        (
            "prewarm",
            {"targets": "fast,slow", "visibilties": "public"},
            "visibilties: there is no such option",
        ),
        ("target fast", {"volume_type": "ssd"}, "[target fast]: there is no such group"),
        ("DEFAULT", {"debug": "perhaps"}, "[DEFAULT] debug"),
        ("prewarm", {"targets": "fast,slow,a b"}, "'a b' is no name"),
        ("prewarm", {"targets": "fast,slow", "visibilities": "everybody"}, "visibilities"),
        ("prewarm", {"targets": "fast,slow", "min_size": 5, "max_size": 4}, "max_size is below"),
        ("target:fast", {"volume_type": "ssd", "strategy": "magic"}, "strategy"),
        ("target:fast", {"volume_type": "ssd", "strategy": "location"}, "glance_store is missing"),
        (
            "target:fast",
            {"volume_type": "x", "strategy": "store", "disk_formats": "raw,qcow2"},
            "nothing but raw",
        ),
        ("target:fast", {"volume_type": "x", "strategy": "native"}, "native_stores is missing"),
        (
            "target:fast",
            {"volume_type": "ssd", "volume_types": "gold,hdd"},
            "[target:fast] volume_types: hdd is of target slow already",
        ),
        ("probes", {"bind": "everywhere"}, "not HOST:PORT"),
        ("probes", {"bind": "h:70000"}, "not HOST:PORT"),
        ("prewarm", {"exclude_projects": "demo"}, "exclude_projects: 'demo' is no project's id"),
        ("prewarm", {"projects": ONE[:31]}, "is no project's id"),
        (
            "prewarm",
            {"property": "image_volume_source"},
            "[prewarm] property is one of [uploads] too",
        ),
        (
            "target:slow",
            {"volume_type": "ssd", "strategy": "cache"},
            "have the same volume_type ssd",
        ),
        (
            "target:slow",
            {"volume_type": "x", "disk_formats": "raw,foo", "strategy": "cache"},
            "foo",
        ),
    ],
)
def test_each_fault_is_named(
    tmp_path: Path, group: str, options: dict[str, object], fault: str
) -> None:
    with pytest.raises(Misconfigured) as error:
        load(tmp_path, {**GOOD, group: options})
    assert [one for one in error.value.faults if fault in one], error.value.faults


@pytest.mark.parametrize("group", ["oslo_messaging_rabbit", "oslo_policy", "keystone_authtoken"])
def test_what_libraries_and_services_have_in_a_shared_file_is_left_alone(
    tmp_path: Path, group: str
) -> None:
    load(tmp_path, {**GOOD, group: {"whatever": "there is"}})


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    wrong = {
        "notifications": {"transport_urls": "x://", "prefetch": "many"},
        "prewarm": {"targets": "a,b", "min_siz": 1},
        "probes": {"bind": "x"},
    }
    with pytest.raises(Misconfigured) as error:
        load(tmp_path, wrong)
    assert len(error.value.faults) == 6, error.value.faults
    assert "LocationInfo" not in str(error.value)


def test_the_readmes_example_is_a_good_one(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    example = readme.partition("```ini\n")[2].partition("```")[0]
    loaded = load_text(tmp_path, example)
    assert [target.name for target in loaded.targets] == ["fast", "archive"]
    assert len(loaded.transport_urls) == 2


def test_no_fault_tells_a_password(tmp_path: Path) -> None:
    wrong = {
        **GOOD,
        "notifications": {"transport_urls": "rabbit://u:s3cret@h:no/"},
        "work": {"url": "amqp://u:s3cret@h:no/"},
    }
    with pytest.raises(Misconfigured) as error:
        load(tmp_path, wrong)
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    ("bind", "address"),
    [
        ("127.0.0.1:9417", ("127.0.0.1", 9417)),
        ("localhost:0", ("localhost", 0)),
        ("controller-1.example.org:65535", ("controller-1.example.org", 65535)),
        ("[::1]:9417", ("::1", 9417)),
        ("[::]:9417", ("::", 9417)),
        ("[fe80::1%eth0]:9417", ("fe80::1%eth0", 9417)),
        ("", None),
    ],
)
def test_where_the_probes_listen(
    tmp_path: Path, bind: str, address: tuple[str, int] | None
) -> None:
    assert load(tmp_path, {**GOOD, "probes": {"bind": bind}}).bind == address


@pytest.mark.parametrize(
    "bind",
    [
        "9417", ":9417", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:\u0663", "h:1e3",
        "127.0.0.1:" + "9" * 5000, "::1:9417", "[::1:9417", "::1]:9417", "[]:9417", "[127.0.0.1]:9417", "[no]:9417",
        "999.1.1.1:80", "1.2.3:80", "a b:80", "a/b:80", "-a:80", "a..b:80", f"{'a' * 64}:80", "http://h:80",
    ],
)  # fmt: skip
def test_what_no_socket_could_be_bound_to_is_a_fault_of_the_configuration(
    tmp_path: Path, bind: str
) -> None:
    with pytest.raises(Misconfigured, match=r"\[probes\] bind: .* is not HOST:PORT"):
        load(tmp_path, {**GOOD, "probes": {"bind": bind}})


def test_each_option_becomes_one_field_and_no_default_stands_twice() -> None:
    filled = [option.field for option in TABLE if option.field]
    assert len(filled) == len(set(filled))
    for option in TABLE:
        if option.part:
            assert option.attribute in {field.name for field in fields(PARTS[option.part])}
            # The part's own default, but for what is written in another way
            assert option.default is None or option.name == "pools", option
        elif option.field:
            assert option.field in {field.name for field in fields(Settings)}
