"""The unit as systemd itself judges it."""

from __future__ import annotations

import configparser
import re
import subprocess
from pathlib import Path

from worker.settings import OPTIONS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "config" / "systemd"
UNIT = FOLDER / "image-volume-worker.service"
MOST_EXPOSED = 1.5


def test_it_is_hardened() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(UNIT)],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Overall exposure level for \S+: (\d+\.\d+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= MOST_EXPOSED, (
        f"exposure {found[1]}: systemd-analyze security {UNIT} says what is open"
    )


def test_systemd_understands_it(tmp_path: Path) -> None:
    # The program is not installed on the machine of a test
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/bin/image-volume-worker", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    about_us = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert (done.returncode, about_us) == (0, []), done.stderr


def test_times_fit() -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    service = parser["Service"]
    sample = (ROOT / "config" / "image-volume-worker.conf.sample").read_text()
    found = re.search(r"^#drain_timeout = ([\d.]+)", sample, re.MULTILINE)
    assert found
    drain = float(found[1])
    assert int(service["TimeoutStopSec"]) > 2 * drain, "a stop drains"
    assert int(service["WatchdogSec"]) > 2 * drain, (
        "a reload drains too, and feeds no watchdog meanwhile"
    )


def test_users_and_folders_are_made_as_systemd_reads_them(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    for program, file in (
        ("systemd-sysusers", "sysusers.conf"),
        ("systemd-tmpfiles", "tmpfiles.conf"),
    ):
        words = ["--create"] if program == "systemd-tmpfiles" else []
        done = subprocess.run(
            [program, *words, f"--root={tmp_path}", str(FOLDER / file)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert "image-volume-worker" in (tmp_path / "etc" / "passwd").read_text()
    assert (tmp_path / "etc" / "image-volume-worker" / "image-volume-worker.conf.d").is_dir()


def test_credentials_take_nothing_from_the_unit() -> None:
    drop_in = (FOLDER / "credentials.conf").read_text()
    (unit_start,) = re.findall(r"^ExecStart=(.+)$", UNIT.read_text(), re.MULTILINE)
    (start,) = re.findall(r"^ExecStart=(.+)$", drop_in, re.MULTILINE)
    assert start.replace(" --config-file %d/secrets.conf", "") == unit_start
    given = set(re.findall(r"^LoadCredential=([^:]+):", drop_in, re.MULTILINE))
    assert given == set(re.findall(r"%d/(\S+)", drop_in)), "each is read, and nothing else"


def test_systemd_understands_the_credentials(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/bin/image-volume-worker", "/bin/true"))
    folder = tmp_path / f"{UNIT.name}.d"
    folder.mkdir()
    text = (
        (FOLDER / "credentials.conf")
        .read_text()
        .replace("/usr/bin/image-volume-worker", "/bin/true")
    )
    (folder / "credentials.conf").write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    about_us = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert (done.returncode, about_us) == (0, []), done.stderr


def test_the_environment_is_one_of_options() -> None:
    names = re.findall(
        r"^#?OS_([A-Z]+)__([A-Z_]+)=",
        (FOLDER / "image-volume-worker.default").read_text(),
        re.MULTILINE,
    )
    known = {(group.name, option.name) for group, options in OPTIONS.items() for option in options}
    assert len(names) >= 3
    assert {(group.lower(), option.lower()) for group, option in names} <= known
