"""Limits: how long a job may take, and how often it may fail."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long things may take and how often they may fail; times in seconds.

    `job` bounds one try of a job. A job in progress holds its delivery for `hold` before that goes
    back into its lane, one that waits for a slot for a third of it: a broker allows 30 minutes for
    both. `poll_min` and `poll_max` bound the polls of a job that waits. Jobs in progress have
    `drain` to end when the process is told to stop. A parked key is left alone for
    `park_retry_after`.
    """

    max_attempts: int = 20
    job: float = 3600.0
    hold: float = 900.0
    poll_min: float = 0.5
    poll_max: float = 15.0
    drain: float = 30.0
    park_retry_after: float = 21600.0
