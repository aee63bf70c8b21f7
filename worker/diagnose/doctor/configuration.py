"""Options that are right one by one and don't go together. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from worker.broker.url import parse
from worker.diagnose.check import Check
from worker.settings import Settings


def checks(settings: Settings, files: Iterable[str]) -> Iterator[Check]:
    """Check the configuration that was read, and its contradictions."""
    read = ", ".join(files) or "no file, the environment alone"
    names = ", ".join(target.name for target in settings.targets)
    yield Check("configuration", "ok", f"{read}: {len(settings.targets)} targets ({names})")
    for number, (detail, advice) in enumerate(_contradictions(settings), start=1):
        yield Check(f"configuration {number}", "warn", detail, advice)


def _contradictions(settings: Settings) -> Iterator[tuple[str, str]]:
    for warning in settings.warnings:
        yield warning, "name it there, or delete the section"
    memory = settings.in_memory
    if memory and not settings.resync_on_start:
        yield (
            "jobs wait in memory, and nothing looks for the lost ones at start",
            "set [resync] on_start = true, or [work] url to a broker",
        )
    if settings.driver == "rabbit":
        places = [(parse(url).hosts, parse(url).virtual_host) for url in settings.transport_urls]
        seen = [({host.name for host in hosts}, vhost) for hosts, vhost in places]
        twice = [
            n
            for n, (hosts, vhost) in enumerate(seen)
            if any(vhost == v and hosts & h for h, v in seen[:n])
        ]
        if twice:
            yield (
                (
                    f"[notifications] transport_urls names a vhost twice (number "
                    f"{', '.join(map(str, twice))})"
                ),
                "name each vhost once, with all of its hosts in one URL",
            )
        if not memory:
            work = parse(settings.work_url)
            hosts = {host.name for host in work.hosts}
            if any(work.virtual_host == vhost and hosts & others for others, vhost in seen):
                yield (
                    (
                        "[work] url is on a vhost of the services, where policies of theirs may "
                        "throw jobs away"
                    ),
                    (
                        "give the lanes a vhost of their own: rabbitmqctl add_vhost "
                        "image-volume-worker"
                    ),
                )
    if "info" not in settings.priorities:
        yield (
            "[notifications] priorities lacks info, at which almost everything is told",
            "set priorities = info, error",
        )
    if both := settings.policy.projects & settings.policy.exclude_projects:
        yield (
            (
                f"[prewarm] projects and exclude_projects both name {', '.join(sorted(both))}: "
                f"excluded"
            ),
            "take it out of one of them",
        )
    if not settings.policy.visibilities:
        yield (
            "[prewarm] visibilities is empty: no image is kept warm",
            "name some, or leave the default",
        )
    bounded = ", ".join(target.name for target in settings.targets if target.has_budget)
    if bounded and "reclaim" in settings.switched_off:
        yield (
            f"{bounded}: a full budget takes nothing more while [reclaim] enabled = false",
            "set [reclaim] enabled = true, or take max_gigabytes and max_count away",
        )
    if settings.reclaiming.dry_run and "reclaim" not in settings.switched_off:
        yield (
            "[reclaim] dry_run = true: nothing is deleted, what is left over stays",
            "set it to false once the log's volume_would_be_deleted are what you want",
        )
