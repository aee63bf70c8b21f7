"""The settings as values."""

from __future__ import annotations

from dataclasses import dataclass

from worker.core.target import Policy, Reclaiming, Target, Uploads
from worker.engine.limits import Limits
from worker.engine.retry import Backoff

MEMORY = "memory://"
"""The URL of lanes in the memory of a process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The configuration as values, checked. Times in seconds.

    `config_files` and `config_dirs` were read, and hold the options of oslo.messaging too, which
    only oslo.messaging knows. `warnings` are about what has no effect.
    """

    transport_urls: tuple[str, ...]
    exchanges: tuple[str, ...]
    topics: tuple[str, ...]
    priorities: tuple[str, ...]
    queue: str
    queue_type: str
    queue_max_length: int
    queue_expires: int
    prefetch: int
    driver: str
    management_urls: tuple[str, ...]
    work_url: str
    limits: Limits
    backoff: Backoff
    cloud_name: str
    admin_role: str
    api_concurrency: int
    api_timeout: float
    targets: tuple[Target, ...]
    policy: Policy
    uploads: Uploads
    reclaiming: Reclaiming
    switched_off: frozenset[str]
    resync_interval: float
    resync_on_start: bool
    bind: tuple[str, int] | None
    page: bool
    log_level: str = "info"
    log_style: str = "auto"
    log_file: str = ""
    otlp_endpoint: str = ""
    trace_ratio: float = 1.0
    config_files: tuple[str, ...] = ()
    config_dirs: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def in_memory(self) -> bool:
        """Whether jobs wait in the process, and no other process sees them."""
        return self.work_url == MEMORY

    @property
    def lanes(self) -> list[str]:
        """The lanes that a worker with these settings opens."""
        others = [name for name in ("upload", "reclaim") if name not in self.switched_off]
        return [*others, *(f"prewarm.{target.name}" for target in self.targets)]
