"""Which target a volume belongs to: by its type, or by its pool if its type shares the target's
pools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from worker.core.pool import pool_of_notification


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeMap:
    """Names of targets. `types` has them by the id of a volume type, `hosts` by a pool,
    host@backend#pool.

    `sharing` are the ids of types that are no target's and whose volumes may lie in targets' pools:
    what is kept warm there serves them, too.
    """

    types: Mapping[str, str] = field(default_factory=dict)
    hosts: Mapping[str, str] = field(default_factory=dict)
    sharing: frozenset[str] = frozenset()

    def target_of(self, type_id: str, host: str) -> str:
        """The target that serves a volume of this type in this pool; "" if none does."""
        if target := self.types.get(type_id):
            return target
        pool = pool_of_notification(host, self.hosts)
        return self.hosts.get(pool, "") if type_id in self.sharing else ""
