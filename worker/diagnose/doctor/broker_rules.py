"""Checks of a RabbitMQ by what its management API tells: policies, alarms, bindings. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from worker.broker.inspect import Look
from worker.diagnose.check import Check
from worker.diagnose.doctor.management import Managed, Rules
from worker.diagnose.doctor.untold import Untold, untold
from worker.settings import Settings

LANES = "lanes"


def managed(
    name: str,
    answer: Managed | Untold | None,
    look: Look,
    settings: Settings,
    queues: Iterable[str],
) -> Iterator[Check]:
    """Check what the management API tells of a vhost; None if none is configured for its
    cluster."""
    if answer is None:
        yield Check(
            f"{name} policies",
            "skipped",
            "not looked at: no URL in [notifications] management_urls is of this cluster "
            f"({look.cluster or 'it tells no name'})",
        )
        return
    if isinstance(answer, Untold):
        advice = (
            "check management_urls: host, port, password, and the user's tags (monitoring, "
            "policymaker)"
        )
        yield untold(f"{name} policies", answer, advice)
        return
    yield policies(
        f"{name} policies", answer.rules, {queue: _own_limits(queue, settings) for queue in queues}
    )
    yield alarms(f"{name} alarms", answer.alarms)
    if name != LANES and settings.queue in look.queues:
        yield bindings(f"{name} bindings", answer.bound, look.exchanges)


def _own_limits(queue: str, settings: Settings) -> Mapping[str, int]:
    """Return the limits of our own declaration: a policy that allows as much takes nothing away."""
    if queue != settings.queue:
        return {}
    return {"max-length": settings.queue_max_length, "expires": settings.queue_expires * 1000}


def policies(
    name: str, rules: Mapping[str, Rules], queues: Mapping[str, Mapping[str, int]]
) -> Check:
    """Whether policies make messages of our queues go away; `queues` with the bounds that we have
    set ourselves."""
    told = {queue: rules[queue] for queue in queues if queue in rules}
    found = []
    for queue, rule in told.items():
        tight = {
            key: value
            for key, value in rule.losing.items()
            if value < queues[queue].get(key, value + 1)
        }
        if tight:
            what = ", ".join(f"{key} {value}" for key, value in tight.items())
            found.append(f"{queue}: {what} (policy {', '.join(rule.policies)})")
    if found:
        jobs = name.startswith(LANES)
        what = "jobs are" if jobs else "notifications are"
        return Check(
            name,
            "fail" if jobs else "warn",
            f"{what} thrown away: {'; '.join(found)}",
            "exclude our queues from the policy's pattern, or give them one of their own with a "
            "higher --priority"
            if not jobs
            else "put the lanes on a vhost without such a policy",
        )
    if len(told) < len(queues):
        return Check(
            name,
            "ok",
            f"nothing against {len(told)} of {len(queues)} queues; the others can't be told",
        )
    return Check(name, "ok", "none makes messages go away")


def alarms(name: str, found: tuple[str, ...] | None) -> Check:
    """The nodes of a cluster."""
    if found is None:
        return Check(name, "skipped", "not told: the user of management_urls has no tag monitoring")
    if found:
        return Check(
            name,
            "fail",
            "; ".join(found),
            "publishers are stopped until then: free memory or disk on that node, drain queues "
            "that nobody reads, "
            "start nodes that are down",
        )
    return Check(name, "ok", "none")


def bindings(name: str, bound: frozenset[str] | None, exchanges: Iterable[str]) -> Check:
    """Whether our queue gets what the exchanges are told."""
    if bound is None:
        return Check(name, "skipped", "not told to the user of management_urls")
    if loose := [exchange for exchange in exchanges if exchange not in bound]:
        return Check(
            name,
            "warn",
            f"not bound to {', '.join(loose)}: nothing of it is heard",
            "a running worker binds its queue within 5 minutes, to a new exchange within an "
            "hour, after a SIGHUP at "
            "once; if it does not, see exchange_not_bound in its log",
        )
    return Check(name, "ok", f"bound to {', '.join(sorted(bound))}")
