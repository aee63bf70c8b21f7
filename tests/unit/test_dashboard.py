"""The dashboard, by the types that Grafana makes of its own schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

DASHBOARD = json.loads(
    (Path(__file__).parents[2] / "config" / "grafana" / "dashboard.json").read_text()
)


def unknown(ours: Any, schema: Any, path: str = "") -> Iterator[str]:
    """Paths of what the schema does not know, or has as something else."""
    if isinstance(ours, dict) and isinstance(schema, dict):
        for name, value in ours.items():
            if name in schema:
                yield from unknown(value, schema[name], f"{path}/{name}")
            else:
                yield f"{path}/{name}"
    elif isinstance(ours, list) and isinstance(schema, list) and len(ours) == len(schema):
        for number, (one, other) in enumerate(zip(ours, schema, strict=True)):
            yield from unknown(one, other, f"{path}/{number}")
    elif ours != schema:
        yield path


def read(dashboard: dict[str, Any]) -> dict[str, Any]:
    """A dashboard as Grafana's types have it."""
    known: dict[str, Any] = json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder))
    return known


def test_grafana_knows_all_of_it() -> None:
    assert list(unknown(DASHBOARD, read(DASHBOARD))) == []


@pytest.mark.parametrize("wrong", ["refreshes", "panel"])
def test_what_grafana_does_not_know_is_found(wrong: str) -> None:
    changed = json.loads(json.dumps(DASHBOARD))
    {"refreshes": changed, "panel": changed["panels"][0]}[wrong]["colour"] = "green"
    assert [path.rpartition("/")[2] for path in unknown(changed, read(changed))] == ["colour"]
