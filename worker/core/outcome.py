"""The answers of a handler for a key. Only the runner settles them."""

from __future__ import annotations

from dataclasses import dataclass

from worker.core.state import State


@dataclass(frozen=True, slots=True)
class Done:
    """The world is as it should be; `changed` if this try made it so, `warmed` if something is warm
    by that.

    `state` is the image's on the key's target then, None where the key has no target. GONE: nothing
    is left of it.
    """

    detail: str = ""
    changed: bool = False
    warmed: bool = False
    state: State | None = None


@dataclass(frozen=True, slots=True)
class Skip:
    """A rule says that nothing is to be done here; `reason` is that rule, `state` the image's on
    the key's target."""

    reason: str
    state: State = State.UNWANTED


@dataclass(frozen=True, slots=True)
class Again:
    """Look again: after `after` seconds, or when None after the job's own backoff.

    `counted` is False for waits that are no failure (an image that is not quiet yet): they never
    lead to a dead letter. The look that is due anyway answers a notification about the key. With
    `wake_on_notification` the notification brings the look forward: for a wait that a user can end,
    and that makes no notifications itself.
    """

    reason: str
    after: float | None = None
    counted: bool = True
    wake_on_notification: bool = False


@dataclass(frozen=True, slots=True)
class Park:
    """A person has to look at it: the job becomes a dead letter."""

    reason: str
    traceback: str = ""


Outcome = Done | Skip | Again | Park
