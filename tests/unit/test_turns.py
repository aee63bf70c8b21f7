"""Whose turn it is, and when a lane is looked through."""

from __future__ import annotations

import pytest

from worker.engine.turns import PAUSE, SHARE, Sweep, Turns


def lane(**waiting: int) -> Turns[str]:
    turns: Turns[str] = Turns()
    for project, count in waiting.items():
        for number in range(count):
            turns.add(project, f"{project}{number}")
    return turns


def test_projects_take_turns() -> None:
    turns = lane(a=3, b=2, c=1)
    assert [turns.begin() for _ in range(6)] == ["a0", "b0", "c0", "a1", "b1", "a2"]
    assert not turns


def test_who_has_the_most_in_progress_comes_last() -> None:
    turns = lane(a=3)
    assert [turns.begin(), turns.begin()] == ["a0", "a1"]
    turns.add("b", "b0")
    turns.add("b", "b1")
    assert [turns.begin(), turns.begin()] == ["b0", "b1"]
    turns.end("b")
    turns.add("b", "b2")
    # One of b's against two of a's
    assert turns.begin() == "b2"


def test_who_was_put_back_has_not_had_a_turn() -> None:
    turns = lane(a=1, b=1, c=1)
    assert turns.begin() == "a0"
    assert turns.surplus(1) == ["c0"]
    turns.add("a", "a1")
    turns.end("a")
    assert turns.begin() == "b0"
    turns.end("b")
    turns.add("b", "b1")
    turns.add("c", "c0")
    assert [turns.begin() for _ in range(3)] == ["c0", "a1", "b1"]


def test_only_so_many_projects_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine.turns.PROJECTS", 2)
    turns = lane(a=1, b=1, c=1)
    assert [turns.begin() for _ in range(3)] == ["a0", "b0", "c0"]
    for project in "abc":
        turns.end(project)
        turns.add(project, project)
    assert [turns.begin() for _ in range(3)] == ["a", "b", "c"]


def test_what_another_project_asks_for_too_comes_sooner() -> None:
    turns = lane(a=4, b=1)
    last = turns._waiting["a"][3]
    assert not turns.move_up("a9", "a", "b")
    assert turns.move_up(last, "a", "b")
    assert [turns.begin() for _ in range(5)] == ["a0", "b0", "a1", "a3", "a2"]
    # Not where it would wait longer
    turns = lane(a=1, b=3)
    assert not turns.move_up(turns._waiting["a"][0], "a", "b")
    assert not turns.move_up("b0", "nobody", "b")


def test_nothing_waits() -> None:
    with pytest.raises(LookupError):
        lane().begin()


def test_the_surplus_is_what_is_not_next() -> None:
    turns = lane(a=5, b=2, c=1, d=1)
    assert turns.surplus(5) == ["a2", "a3", "a4", "b1"]
    assert turns.surplus(5) == []
    assert len(turns) == 5
    assert [turns.begin() for _ in range(5)] == ["a0", "b0", "c0", "d0", "a1"]


def test_the_surplus_is_of_who_has_the_most_in_progress() -> None:
    turns = lane(a=3, b=1)
    assert [turns.begin(), turns.begin()] == ["a0", "b0"]
    turns.end("b")
    turns.add("c", "c0")
    assert turns.surplus(1) == ["a1", "a2"]
    assert turns.begin() == "c0"
    assert not turns


def test_a_sweep_goes_once_through_what_waits_and_then_rests() -> None:
    sweep = Sweep()
    assert not sweep.due(0, now=0.0)
    assert sweep.due(30, now=100.0)
    sweep.passed(20, now=101.0)
    assert sweep.due(10, now=101.0)
    sweep.passed(20, now=102.0)
    pause = max(PAUSE, SHARE * 2.0)
    assert not sweep.due(500, now=102.0 + pause - 0.1)
    assert sweep.due(500, now=102.0 + pause)


def test_a_short_sweep_rests_too() -> None:
    sweep = Sweep()
    assert sweep.due(1, now=0.0)
    sweep.passed(1, now=0.0)
    assert not sweep.due(1, now=PAUSE - 0.1)
