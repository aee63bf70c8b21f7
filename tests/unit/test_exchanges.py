"""When exchanges are looked for: often while they are there, ever more rarely while they are
not."""

from __future__ import annotations

from worker.broker.exchanges import LONGEST_PAUSE, LOOK_EVERY, Exchanges

DAY = 86_400.0


def looks(exchanges: Exchanges, name: str, *, since: float, until: float) -> list[float]:
    """When an exchange that is missing is looked for."""
    times, now = [], since
    while now < until:
        for due in exchanges.due(now):
            if due == name:
                times.append(now)
            exchanges.missing(due, "no exchange", now)
        now = max(now + 0.001, exchanges.next_look)
    return times


def test_all_are_looked_for_at_once() -> None:
    exchanges = Exchanges(["glance", "cinder"])
    assert exchanges.due(0.0) == exchanges.unbound == ("glance", "cinder")


def test_one_that_is_there_is_looked_at_every_few_seconds() -> None:
    exchanges = Exchanges(["glance"])
    assert exchanges.found("glance", 0.0)
    assert exchanges.next_look == LOOK_EVERY
    assert not exchanges.found("glance", LOOK_EVERY)
    assert exchanges.unbound == ()


def test_one_that_was_never_there_is_looked_for_some_thirty_times_a_day() -> None:
    times = looks(Exchanges(["cinder"]), "cinder", since=0.0, until=DAY)
    assert times[:5] == [0.0, 5.0, 15.0, 35.0, 75.0]
    assert times[-1] - times[-2] == LONGEST_PAUSE
    assert len(times) < 36


def test_one_that_comes_back_is_bound_after_twice_the_time_that_it_was_away() -> None:
    exchanges = Exchanges(["glance"])
    exchanges.found("glance", 0.0)
    times = looks(exchanges, "glance", since=LOOK_EVERY, until=DAY)
    assert times[:4] == [5.0, 10.0, 20.0, 40.0]
    assert times[-1] - times[-2] == LONGEST_PAUSE
    assert len(times) < 36


def test_a_connection_that_breaks_makes_no_looks_for_what_was_never_there() -> None:
    exchanges = Exchanges(["glance", "cinder"])
    exchanges.found("glance", 0.0)
    last = looks(exchanges, "cinder", since=0.0, until=DAY)[-1]
    # glance was missing as well, and has come back
    exchanges.found("glance", last + 1)
    exchanges.missing("cinder", "no exchange", last + LOOK_EVERY + 1)
    (last,) = looks(exchanges, "cinder", since=last + LOOK_EVERY + 2, until=last + 4 * LOOK_EVERY)[
        -1:
    ]
    for again in range(5):
        exchanges.disconnected()
        assert exchanges.unbound == ("glance", "cinder")
        assert exchanges.due(last + again / 10) == ("glance",)
        assert exchanges.found("glance", last + again / 10)


def test_when_a_service_begins_to_publish_the_others_are_looked_for_soon() -> None:
    exchanges = Exchanges(["glance", "openstack", "cinder"])
    looks(exchanges, "glance", since=0.0, until=DAY)
    assert exchanges.next_look > DAY + LOOK_EVERY
    assert exchanges.found("glance", DAY)
    assert exchanges.due(DAY + LOOK_EVERY) == ("glance", "openstack", "cinder")


def test_a_reason_is_told_once() -> None:
    exchanges = Exchanges(["glance"])
    assert exchanges.missing("glance", "no exchange", 0.0)
    assert not exchanges.missing("glance", "no exchange", 1.0)
    assert exchanges.missing("glance", "access refused", 2.0)
