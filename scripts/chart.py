"""Writes what the Helm chart takes from elsewhere: the options in its schema, the alerts, the
dashboard.

python -m scripts.chart [--check]

With --check it only says what is not current, by its exit status too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from oslo_config import cfg, types

from worker.core.target import UPLOAD
from worker.settings import NAME, OPTIONS, TARGET_OPTIONS

ROOT = Path(__file__).parents[1]
CHART = ROOT / "config" / "helm" / "image-volume-worker"
SCHEMA = CHART / "values.schema.json"
COPIES = {
    CHART / "files" / "prometheus-rules.yaml": ROOT / "config" / "prometheus" / "rules.yaml",
    CHART / "files" / "dashboard.json": ROOT / "config" / "grafana" / "dashboard.json",
}
# The chart knows these better: they follow from other values
OWN = {("prewarm", "targets"), ("probes", "bind")}
# A line of its own would be another option
LINE = "^[^\\r\\n]*$"


def option_schema(option: cfg.Opt) -> dict[str, Any]:
    """What a value of this option may be."""
    schema: dict[str, Any] = {"description": option.help}
    match option.type:
        case types.List():
            # What has a comma in it would be two
            items = {"type": "string", "pattern": "^[^\\r\\n,]+$"} | _choices(option.type.item_type)
            return schema | {"type": "array", "items": items}
        case types.Boolean():
            return schema | {"type": "boolean"}
        case types.Integer() | types.Float():
            kind = "integer" if isinstance(option.type, types.Integer) else "number"
            limits = {"minimum": option.type.min, "maximum": option.type.max}
            return (
                schema
                | {"type": kind}
                | {name: limit for name, limit in limits.items() if limit is not None}
            )
        case types.String():
            return schema | {"type": "string"} | (_choices(option.type) or {"pattern": LINE})
        case other:
            raise TypeError(f"{option.name}: no schema for {other}")


def _choices(kind: object) -> dict[str, Any]:
    choices = getattr(kind, "choices", None)
    return {"enum": list(choices)} if choices else {}


def group_schema(group: str, options: Iterable[cfg.Opt]) -> dict[str, Any]:
    """The options of a group that may stand in the ConfigMap; what holds passwords may not."""
    shown = [option for option in options if not option.secret and (group, option.name) not in OWN]
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {option.name: option_schema(option) for option in shown},
    }


def schema(current: dict[str, Any]) -> dict[str, Any]:
    """The schema with the options of today; the rest of it is written by hand."""
    groups = {group.name: group_schema(group.name, options) for group, options in OPTIONS.items()}
    config = {"type": "object", "additionalProperties": False, "properties": groups}
    targets = {
        "type": "object",
        "propertyNames": {"pattern": f"^(?:{NAME.pattern})$", "not": {"const": UPLOAD}},
        "additionalProperties": group_schema("target", TARGET_OPTIONS),
    }
    return current | {"properties": current["properties"] | {"config": config, "targets": targets}}


def wanted() -> dict[Path, str]:
    """What each of the files should hold."""
    text = json.dumps(schema(json.loads(SCHEMA.read_text())), indent=2, ensure_ascii=False) + "\n"
    return {SCHEMA: text} | {copy: original.read_text() for copy, original in COPIES.items()}


def main(words: list[str]) -> int:
    """Write, or only tell, what is not current; exit status 1 if --check found something."""
    texts = wanted()
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    if words == ["--check"]:
        for path in stale:
            print(
                f"chart: {path.relative_to(ROOT)} is not current; run python -m scripts.chart",
                file=sys.stderr,
            )
        return int(bool(stale))
    for path in stale:
        path.write_text(texts[path])
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
