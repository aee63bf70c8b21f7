"""The command line: names of commands."""

from __future__ import annotations

import pytest

from worker.cli import Worker


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("stauts", ["status"]), ("evcit", ["evict"]), ("foo", []), ("xyzzy", [])],
)
def test_a_command_is_suggested_only_if_it_is_likely_meant(typed: str, meant: list[str]) -> None:
    assert Worker().get_fuzzy_matches(typed) == meant
