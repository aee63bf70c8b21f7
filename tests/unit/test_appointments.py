"""Appointments: which jobs a later look answers, and which looks are late."""

from __future__ import annotations

import time

import pytest

from worker.core.job import OPERATOR, RESYNC, Key
from worker.engine.appointments import LATE, Appointments
from worker.testing.rig import job

KEY = Key("prewarm", "image", "fast")
NOW = 1_000_000.0
IN_A_MINUTE, A_MINUTE_AGO = NOW + 60.0, NOW - 60.0


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)


@pytest.mark.parametrize(
    ("due", "wakes", "cause", "own_due", "answered"),
    [
        (IN_A_MINUTE, False, RESYNC, 0.0, True),
        (IN_A_MINUTE, True, "image.update", 0.0, False),
        (IN_A_MINUTE, True, "late", A_MINUTE_AGO, True),
        (IN_A_MINUTE, False, "image.update", IN_A_MINUTE, False),
        (IN_A_MINUTE, False, OPERATOR, 0.0, False),
        (A_MINUTE_AGO, False, "image.update", 0.0, False),
    ],
    ids=[
        "a look that is due answers a job",
        "a notification brings the look forward",
        "a copy for a time that is past does not",
        "the copy for that time is the look",
        "an operator does not wait",
        "a time that is past answers nothing",
    ],
)
def test_which_jobs_a_later_look_answers(
    due: float, wakes: bool, cause: str, own_due: float, answered: bool
) -> None:
    appointments = Appointments()
    appointments.make(KEY, due, wake_on_notification=wakes)
    asked = job(KEY, cause=cause, due=own_due)
    assert appointments.answer(asked) is answered


def test_a_parked_key_is_left_alone_until_its_time() -> None:
    appointments = Appointments()
    appointments.park(KEY, IN_A_MINUTE)
    assert appointments.answer(job(KEY))
    assert not appointments.answer(job(KEY, cause=OPERATOR))
    appointments.park(KEY, A_MINUTE_AGO)
    assert not appointments.answer(job(KEY))


def test_a_key_that_was_parked_by_a_clock_that_was_ahead_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    appointments = Appointments()
    monkeypatch.setattr(time, "time", lambda: NOW + 1e7)
    appointments.park(KEY, NOW + 1e7 + 60.0)
    assert appointments.answer(job(KEY))
    monkeypatch.setattr(time, "time", lambda: NOW)
    assert not appointments.answer(job(KEY))
    appointments.tidy()
    assert not appointments._parked


def test_a_look_that_began_is_no_appointment_any_more() -> None:
    appointments = Appointments()
    appointments.make(KEY, IN_A_MINUTE, wake_on_notification=True)
    assert (appointments.due(), appointments.due(within=30.0)) == (1, 0)
    assert appointments.waiting() == {KEY.lane: 1}
    appointments.keep(KEY)
    assert appointments.due() == 0
    assert not appointments.answer(job(KEY))


@pytest.mark.parametrize(
    ("due", "present", "depth", "late"),
    [
        (NOW - LATE - 1, False, 0, True),
        (NOW - LATE + 1, False, 0, False),
        (NOW - LATE - 1, True, 0, False),
        (NOW - LATE - 1, False, 3, False),
        (NOW - LATE - 1, False, None, False),
    ],
    ids=["late", "not yet", "here already", "waiting in its lane", "its lane is not counted"],
)
def test_late_looks_are_taken_once(
    due: float, present: bool, depth: int | None, late: bool
) -> None:
    appointments = Appointments()
    appointments.make(KEY, due, wake_on_notification=False)
    here, depths = {KEY} if present else set(), {} if depth is None else {KEY.lane: depth}
    assert appointments.take_late(here, depths) == ({KEY: due} if late else {})
    assert appointments.take_late(here, depths) == {}
