"""One option: how `Settings` and oslo.config have it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from oslo_config import cfg, types

from worker.core.target import Policy, Reclaiming, Target, Uploads
from worker.engine.limits import Limits
from worker.engine.retry import Backoff

SECONDS = "seconds"
PARTS: dict[str, Any] = {
    "limits": Limits(),
    "backoff": Backoff(),
    "policy": Policy(),
    "uploads": Uploads(),
    "reclaiming": Reclaiming(),
    "target": Target(name="", volume_type=""),
}
"""Values that `Settings` consists of. Their fields' defaults are the options' defaults."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a group.

    Its value becomes `field` of `Settings`, or of one of its PARTS; with "" `parse` reads it by
    hand. An option of a part has that field's default, unless a `default` is given. `least` and
    `most` bound a number in its `unit`. `secret`: it may hold a password.
    """

    group: str
    name: str
    _: KW_ONLY
    field: str
    help: str
    default: Any = None
    required: bool = False
    unit: str = ""
    least: Any = None
    most: Any = None
    choices: Sequence[str] = ()
    secret: bool = False
    sample: str | None = None

    @property
    def part(self) -> str:
        """The part of `Settings` that has the value; "" for `Settings` itself."""
        return self.field.rpartition(".")[0]

    @property
    def attribute(self) -> str:
        """The name of the value's field there."""
        return self.field.rpartition(".")[2]

    @property
    def initial(self) -> Any:
        """The value if nobody sets it; None for a required option."""
        if self.default is not None or self.required:
            return self.default
        return getattr(PARTS[self.part], self.attribute)

    def value(self, given: Any) -> Any:
        """Return a value that oslo.config has read as `Settings` has it: lists become tuples or
        frozensets."""
        return type(self.initial)(given) if isinstance(given, list) else given

    def to_oslo(self) -> cfg.Opt:
        """Return the option as oslo.config knows it."""
        initial = self.initial
        common: dict[str, Any] = {
            "default": initial,
            "help": self.help,
            "secret": self.secret,
            "sample_default": self.sample,
        }
        match initial:
            case bool():
                return cfg.BoolOpt(self.name, **common)
            case int():
                return cfg.IntOpt(self.name, **common, min=self.least, max=self.most)
            case float():
                return cfg.FloatOpt(self.name, **common, min=self.least, max=self.most)
            case tuple() | frozenset():
                # A set has no order: that of its choices, which are all it can hold
                ordered = initial if isinstance(initial, tuple) else self._ordered(initial)
                item = types.String(choices=list(self.choices) or None)
                common["default"] = list(ordered)
                return cfg.ListOpt(self.name, **common, item_type=item)
            case _:
                return cfg.StrOpt(self.name, **common, choices=list(self.choices) or None)

    def _ordered(self, initial: frozenset[str]) -> Iterable[str]:
        return [one for one in self.choices if one in initial] if self.choices else sorted(initial)
