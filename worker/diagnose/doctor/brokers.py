"""Checks of a RabbitMQ by what a look at it has found. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from worker.broker.inspect import Depth, Look
from worker.diagnose.check import Check, Verdict
from worker.diagnose.doctor.broker_rules import LANES, managed
from worker.diagnose.doctor.management import Managed, Rules
from worker.diagnose.doctor.untold import Untold
from worker.settings import Settings

PILE = 10_000
"""Messages that wait although somebody takes them: more come in than are taken."""
QUORUM = (3, 8)
DELAYS = (3, 10)
"""The RabbitMQ that first had quorum queues, and the one that let their messages expire, as delays
need."""


def undrained_names(settings: Settings) -> tuple[str, ...]:
    """The queues that oslo.messaging makes for publishers, whether or not anybody reads them."""
    return tuple(
        f"{topic}.{priority}" for topic in settings.topics for priority in settings.priorities
    )


def notifications(
    name: str, look: Look, settings: Settings, management: Managed | Untold | None
) -> Iterator[Check]:
    """A broker that the services publish to; `management` is None if no management API is its
    cluster's."""
    yield from _reachable(name, look, "check the URL, the user's rights on the vhost, the network")
    if look.problem:
        return
    if not look.exchanges:
        yield Check(
            f"{name} exchanges",
            "warn",
            f"none of {', '.join(settings.exchanges)} is there",
            "set driver = messagingv2 in [oslo_messaging_notifications] of Glance and Cinder, "
            "and exchanges to their "
            "control_exchange; an exchange appears with the first notification",
        )
    else:
        yield Check(f"{name} exchanges", "ok", ", ".join(look.exchanges))
    if settings.queue_type == "quorum" and _older(look.version, QUORUM):
        yield Check(
            f"{name} version",
            "fail",
            f"RabbitMQ {look.version} has no quorum queues",
            "set queue_type = classic in [notifications], or upgrade RabbitMQ to 3.8",
        )
    yield _own_queue(f"{name} queue", look, settings)
    for queue in undrained_names(settings):
        if queue in look.queues:
            rules = management.rules.get(queue) if isinstance(management, Managed) else None
            yield drained(f"{name} {queue}", look.queues[queue], rules)
    yield from managed(name, management, look, settings, [settings.queue])


def _reachable(name: str, look: Look, advice: str) -> Iterator[Check]:
    if look.problem:
        yield Check(name, "fail", f"{look.broker}: {look.problem}", advice)
        return
    yield Check(name, "ok", f"{look.broker}: RabbitMQ {look.version}")
    if look.away:
        away = "; ".join(f"{host}: {reason}" for host, reason in look.away.items())
        yield Check(
            f"{name} hosts",
            "warn",
            f"{len(look.away)} of {len(look.broker.hosts)} hosts do not let us in: {away}",
            "the others serve meanwhile: start that node, or take it out of the URL",
        )


def _own_queue(name: str, look: Look, settings: Settings) -> Check:
    queue = look.queues.get(settings.queue)
    if queue is None:
        return Check(
            name,
            "warn",
            f"{settings.queue} is not there: no worker has run for {settings.queue_expires} s, "
            f"or ever",
            "start image-volume-worker run; its first resync makes up for what was missed",
        )
    if look.refused:
        return Check(
            name,
            "fail",
            f"{settings.queue}: {look.refused}",
            _refusal(look.refused, "[notifications]"),
        )
    if queue.problem:
        return _down(name, queue.problem, "fail")
    detail = f"{settings.queue}: {queue.messages} messages, {queue.consumers} consumers"
    if not queue.consumers:
        return Check(
            name,
            "warn",
            detail,
            "no worker consumes: start image-volume-worker run, or see its log",
        )
    if queue.messages > PILE:
        return Check(
            name,
            "warn",
            detail,
            "notifications come in faster than they are read: see the worker's log, CPU",
        )
    return Check(name, "ok", detail)


def drained(name: str, queue: Depth, rules: Rules | None = None) -> Check:
    """A queue that publishers make by themselves: it grows for ever where nobody reads it, and no
    policy bounds it."""
    if queue.problem:
        return _down(name, queue.problem, "warn")
    detail = f"{queue.messages} messages, {queue.consumers} consumers"
    if rules and rules.losing:
        return Check(name, "ok", f"{detail}, bounded by policy {', '.join(rules.policies)}")
    if queue.messages and not queue.consumers:
        return Check(
            name,
            "warn",
            f"{detail}: nobody drains it",
            f"give it a policy: rabbitmqctl set_policy -p VHOST --apply-to queues notifications "
            f"'^{re.escape(name.rpartition(' ')[2])}$' '{{\"max-length\": 10000}}'; or a "
            f"consumer (Ceilometer)",
        )
    if queue.messages > PILE:
        return Check(
            name,
            "warn",
            detail,
            "its consumers don't keep up: look at them, or bound it by a policy",
        )
    return Check(name, "ok", detail)


def lanes(
    look: Look,
    settings: Settings,
    names: Sequence[str],
    dead: str,
    management: Managed | Untold | None,
) -> Iterator[Check]:
    """The broker that jobs wait on; `names` are the queues of the lanes, `dead` is that of the dead
    letters."""
    yield from _reachable(
        LANES, look, "check [work] url, that the vhost is there, and the user's rights on it"
    )
    if look.problem:
        return
    if _older(look.version, DELAYS):
        yield Check(
            "lanes version",
            "fail",
            f"RabbitMQ {look.version}: messages of its quorum queues can't expire, so jobs can't "
            f"wait for a next try",
            "upgrade RabbitMQ to 3.10 or newer, or set [work] url = memory:// with a single worker",
        )
    if look.refused:
        yield Check("lanes rights", "fail", look.refused, _refusal(look.refused, "[work]"))
    else:
        yield Check("lanes rights", "ok", "configure, write, read")
    there = {name: look.queues[name] for name in names if name in look.queues}
    prefix = f"{settings.queue}."
    sick = {name: queue.problem for name, queue in there.items() if queue.problem}
    idle = [
        name.removeprefix(prefix)
        for name, queue in there.items()
        if not queue.consumers and not queue.problem
    ]
    waiting = sum(queue.messages for queue in there.values())
    if sick:
        yield Check(
            "lanes queues",
            "fail",
            "; ".join(f"{name}: {problem}" for name, problem in sick.items()),
            "bring back the nodes that hold them: rabbitmq-queues quorum_status NAME",
        )
    elif not there:
        yield Check(
            "lanes queues",
            "warn",
            "none is there: no worker has run yet",
            "start image-volume-worker run",
        )
    elif idle:
        yield Check(
            "lanes queues",
            "warn",
            f"no worker serves {', '.join(idle)}; {waiting} jobs wait",
            "start image-volume-worker run, or see the log of the one that runs",
        )
    else:
        yield Check(
            "lanes queues", "ok", f"{len(there)} lanes, each with a worker; {waiting} jobs wait"
        )
    yield dead_letters(look.queues.get(dead))
    yield from managed(LANES, management, look, settings, [*names, dead])
    if isinstance(management, Managed) and management.depths is not None:
        yield left_over(management.depths, settings.queue, names)


def left_over(depths: Mapping[str, int], prefix: str, names: Iterable[str]) -> Check:
    """Check for lanes of targets that are not configured any more; `depths` are all queues of the
    vhost. Nobody reads them."""
    of_targets = {name for name in depths if name.startswith(f"{prefix}.prewarm.")}
    if found := sorted(of_targets - set(names)):
        told = ", ".join(f"{name} ({depths[name]} jobs)" for name in found)
        advice = (
            "of a target that was removed or renamed: rabbitmqctl delete_queue it; if a worker with "
            "another configuration serves it, name its targets here too"
        )
        return Check("lanes left over", "warn", told, advice)
    return Check("lanes left over", "ok", "none")


def dead_letters(queue: Depth | None) -> Check:
    """Check the dead letters."""
    name = "dead letters"
    if queue is None:
        return Check(name, "ok", "none")
    if queue.problem:
        return _down(name, queue.problem, "fail")
    if queue.messages:
        return Check(
            name,
            "warn",
            f"{queue.messages}",
            "image-volume-worker dead-letters list shows them; then replay or drop",
        )
    return Check(name, "ok", "none")


def _down(name: str, problem: str, verdict: Verdict) -> Check:
    advice = "bring back the node that holds the queue: rabbitmq-queues status"
    return Check(name, verdict, problem, advice)


def _refusal(said: str, group: str) -> str:
    """Return the advice for a refusal of the broker."""
    if "declared otherwise" in said:
        return (
            f"the queue was made with other options: stop the workers and rabbitmqctl "
            f"delete_queue it, or set {group} "
            "as it was"
        )
    if "takes no messages" in said:
        return "the broker is short of memory or disk: rabbitmq-diagnostics alarms"
    return (
        "grant the user configure, write and read: rabbitmqctl set_permissions -p VHOST USER "
        "'.*' '.*' '.*'"
    )


def _older(version: str, least: tuple[int, ...]) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) < least
