"""The judge of the soak: is everything as if nothing had been broken, and does nothing grow?"""

from __future__ import annotations

import contextlib
import json
import re
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from scripts.cloud import breakage
from scripts.cloud.operate import TARGETS, of_image, sql
from scripts.cloud.people import Person
from scripts.soak_faults import QUEUE, Replica
from scripts.soak_load import LOST, NAME, REFUSED, Item, User
from tests.worker_process import Usage

# Seconds after which a life of a worker has set up what it sets up once, and how long it must have
# lived since
WARM, LIVED = 120.0, 60.0
# How much more of it a life may have at its end than when it was warm
MOST = {"MiB": 16.0, "threads": 8.0, "file descriptors": 16.0}
# And than a fresh worker, which has not yet made the threads of its pool ([cloud] api_concurrency,
# 16), nor what each of them keeps open to Glance and Cinder
MORE_THAN_FRESH = {"MiB": 40.0, "threads": 16.0 + 8.0, "file descriptors": 2 * 16.0 + 16.0}
ATTACHED = ("in-use", "reserved", "attaching", "detaching")
# Seconds after which an import of Glance's does nothing more: Cinder's answers take it five times
# 30 s at most
STILL = 240.0
# An image whose locations Glance hides is looked at again after so many seconds, which its job
# spends in queues that delay for 512, 256 and 128 s, one after the other. When Glance shows them
# again, another job does the work at once
APPOINTED, APPOINTMENTS = 900.0, tuple(f"{QUEUE}_celery_delayed_{level}" for level in (9, 8, 7))
# Log lines that tell of a bug of the worker's, whatever is broken around it
BUGS = {
    "task_failed", "thread_failed", "request_failed", "handler_failed", "broker_session_failed", "outcome_not_written",
    "start_failed", "start_refused", "encrypted_image_volume_deleted", "reclaim_braked",
}  # fmt: skip


def amounts(usage: Usage) -> dict[str, float]:
    """What a worker uses, by the names in the tables."""
    return {
        "MiB": usage.memory / (1 << 20), "threads": float(usage.threads), "file descriptors": float(usage.descriptors),
    }  # fmt: skip


def age(moment: str) -> float:
    """How many seconds ago a moment was that Cinder names."""
    return (datetime.now(UTC) - datetime.fromisoformat(moment).replace(tzinfo=UTC)).total_seconds()


@dataclass
class Judge:
    """Looks at the cloud as its operator; `before` are the volumes that were there when the soak
    began."""

    operator: Person
    admin: Person
    users: list[User]
    replicas: list[Replica]
    disturbed: Callable[[float, float], str]
    before: frozenset[str] = frozenset()
    helped: list[str] = field(default_factory=list)
    """Volumes that only an administrator can free, and the fault in a service that explains
    them."""
    unexplained: list[str] = field(default_factory=list)
    queues: Callable[[str, str], dict[str, int]] = breakage.queues
    sql: Callable[[str, str], str] = sql
    _busted: set[str] = field(default_factory=set)
    _named: set[str] = field(default_factory=set)
    _read: dict[str, int] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """Name what is not yet as it should be."""
        try:
            return [*self._images(), *self._volumes(), *self._queues(), *self._replicas()]
        except (*REFUSED, subprocess.SubprocessError) as error:
            return [f"the cloud can't be looked at: {str(error)[:200]}"]

    def _images(self) -> Iterator[str]:
        for user in self.users:
            name = user.person.connection.config.name
            listed = {
                row["id"]: row for row in user.person.images() if row["name"].startswith(NAME)
            }
            wanted = {item.id: item for item in user.alive()}
            for item in wanted.values():
                if item.id not in listed:
                    yield f"lost: {item.kind} {item.id} of {name}"
                elif text := self._cold(user, item):
                    yield text
            for image_id, row in listed.items():
                if image_id not in wanted:
                    # Recorded, although the answer was lost; or its deletion was refused
                    known = [item for item in user.items if item.id == image_id]
                    if not known:
                        user.items.append(
                            Item(image_id, "image", time.monotonic(), state="deleting")
                        )
                    yield f"{name} deletes image {image_id}, {row['status']}"

    def _cold(self, user: User, item: Item) -> str:
        """Say in what an image is not warm; empty if it is."""
        image = user.person.show(item.id)
        if image["status"] != "active":
            return (
                f"not active: {item.kind} {item.id} is {image['status']}: "
                f"{image.get('image_volume_status', '')}"
            )
        volumes = of_image(self.operator, item.id)
        if len(volumes) > len(TARGETS):
            return (
                f"doubled: {item.kind} {item.id} has {[self._brief(volume) for volume in volumes]}"
            )
        for target in TARGETS:
            found = [volume for volume in volumes if volume["volume_type"] == target]
            if len(found) != 1:
                return f"not warm: {item.kind} {item.id} has {len(found)} Image-Volumes on {target}"
            metadata = found[0]["metadata"]
            good = {
                "status": found[0]["status"] in ("available", "in-use"),
                "owner": metadata.get("image_owner") == image["owner"],
                "tag": metadata.get("image_volume_worker") == target,
                "read-only": metadata.get("readonly") == "True",
                "location": f"cinder-{TARGETS.index(target) + 1}"
                in image.get("stores", "").split(","),
            }
            if not all(good.values()):
                wrong = ", ".join(name for name, right in good.items() if not right)
                return (
                    f"not warm: {item.kind} {item.id} on {target}: {wrong}; {self._brief(found[0])}"
                )
        return ""

    def _volumes(self) -> Iterator[str]:
        wanted = {item.id for user in self.users for item in user.alive()}
        for volume in self.operator.volumes():
            if (
                volume["id"] not in self.before
                and volume["name"].removeprefix("image-") not in wanted
            ):
                yield f"left over: {self._brief(volume)}"
        for user in self.users:
            name = user.person.connection.config.name
            listed = {volume["id"]: volume["status"] for volume in user.person.volumes()}
            if listed.get(user.source) != "available":
                yield f"{name}'s source volume is {listed.get(user.source)}"
            for item in user.of("volume", "creating", "there"):
                if listed.get(item.id) != "available":
                    yield f"{name}'s volume {item.id} is {listed.get(item.id, 'lost')}"
            for item in user.of("volume", "deleting"):
                if item.id in listed:
                    yield f"{name} deletes volume {item.id}, {listed[item.id]}"
                else:
                    item.state = "gone"

    def _queues(self) -> Iterator[str]:
        now = time.monotonic()
        appointments = APPOINTMENTS if "hidden" in self.disturbed(now - APPOINTED, now) else ()
        for vhost in ("/", "worker"):
            found = self.queues(vhost, QUEUE)
            for name in (
                (QUEUE,) if vhost == "/" else (f"{QUEUE}.upload", f"{QUEUE}.prewarm.{TARGETS[0]}")
            ):
                if name not in found:
                    yield f"queue {name} is not there"
            for name, count in found.items():
                told = name.endswith(".dead") or ".replicas." in name or name in appointments
                if count and not told:
                    yield f"queue {name} holds {count}"

    def _replicas(self) -> Iterator[str]:
        for replica in self.replicas:
            if not replica.ready:
                yield f"not ready: {replica.name}: {replica.process.probe('/readyz')[1]}"

    @staticmethod
    def _brief(volume: dict[str, Any]) -> str:
        tag = volume["metadata"].get("image_volume_worker", "no tag")
        return (
            f"volume {volume['id']} {volume['name']} {volume['volume_type']} "
            f"{volume['status']} {tag}"
        )

    def help(self) -> None:
        """Do what docs/upkeep.md asks of an administrator: free the volumes that a worker has named
        as stuck."""
        named = self._stuck()
        for volume in self.operator.volumes():
            if volume["id"] in named and volume["status"] not in ("available", "error", "deleting"):
                self.admin.act(
                    volume["id"], "os-reset_status", status="error", attach_status="detached"
                )
                self._note(
                    f"{self._brief(volume)}, which Cinder lets nobody delete",
                    age(volume["created_at"]),
                )
        for volume in self.operator.volumes():
            still = age(volume["updated_at"] or volume["created_at"])
            if volume["status"] == "deleting" and still > LOST:
                self.admin.act(volume["id"], "os-reset_status", status="error")
                self._note(f"{self._brief(volume)}, whose deletion Cinder has lost", still)
        for user in self.users:
            self._help_user(user)
        self._bust_locks()

    def _help_user(self, user: User) -> None:
        """Free a user's volumes whose making or deletion Cinder has lost; that something is broken
        was noted then."""
        items = {item.id: item for item in user.items}
        for volume in user.person.volumes():
            item, status = items.get(volume["id"]), volume["status"]
            if item is None or item.state not in ("broken", "deleting"):
                continue
            # Once freed, its deletion begins anew: it is given this time again
            still = age(volume["updated_at"] or volume["created_at"])
            if status == "deleting" and still > LOST:
                self.admin.act(item.id, "os-reset_status", status="error")
                name = user.person.connection.config.name
                self._note(f"volume {item.id} of {name}, whose deletion Cinder has lost", still)
            elif not status.startswith(("available", "error", "deleting")):
                self.admin.act(item.id, "os-reset_status", status="error")
            if item.state == "broken":
                user.delete(item)
        for item in (*user.of("image", "deleting"), *user.of("upload", "deleting")):
            self._detach(item)

    def _detach(self, item: Item) -> None:
        """Free what a Glance that was disturbed while it read keeps attached: nobody can delete its
        image. A later read changes the volume too, so the fault may be as old as the volume."""
        for volume in of_image(self.operator, item.id):
            still = age(volume["updated_at"] or volume["created_at"])
            if volume["status"] in ATTACHED and still > STILL:
                self.admin.act(
                    volume["id"], "os-reset_status", status="available", attach_status="detached"
                )
                self._note(
                    f"{self._brief(volume)}, which a disturbed Glance keeps attached",
                    age(volume["created_at"]),
                )

    def _stuck(self) -> set[str]:
        """The volumes that workers have named as stuck. Logs are long: only what is new in them is
        read."""
        for replica in self.replicas:
            if replica.process.log.exists():
                with replica.process.log.open("rb") as log:
                    log.seek(self._read.get(replica.name, 0))
                    text = log.read()
                    # The last line may be half written
                    whole = text[: text.rfind(b"\n") + 1]
                    self._read[replica.name] = self._read.get(replica.name, 0) + len(whole)
                for line in whole.splitlines():
                    with contextlib.suppress(ValueError, KeyError):
                        if b'"volume_stuck"' in line:
                            self._named.add(json.loads(line)["volume_id"])
        return self._named

    def _bust_locks(self) -> None:
        """End the hour for which Glance keeps the lock of an import that a broken database has
        ended midway."""
        for user in self.users:
            for item in user.alive():
                if not (task := user.person.show(item.id).get("os_glance_import_task")):
                    continue
                still = (
                    f"id = '{task}' AND updated_at < UTC_TIMESTAMP() - INTERVAL {STILL:.0f} SECOND"
                )
                if task not in self._busted and self.sql(
                    "glance", f"SELECT id FROM tasks WHERE {still}"
                ):
                    self._busted.add(task)
                    self.sql(
                        "glance",
                        f"UPDATE tasks SET updated_at = updated_at - INTERVAL 1 HOUR WHERE {still}",
                    )
                    text = (
                        f"an import's lock on {item.kind} {item.id}, which Glance would keep "
                        f"for an hour"
                    )
                    self._note(text, time.monotonic() - item.born)
            for item in (*user.of("image", "deleting"), *user.of("upload", "deleting")):
                self._end_hashing(item)

    def _end_hashing(self, item: Item) -> None:
        """Free an image whose hash a killed Glance was computing: to delete it Glance first waits
        for that, in vain, and answers 500 to its owner and to everybody else."""
        since = f"updated_at < UTC_TIMESTAMP() - INTERVAL {STILL:.0f} SECOND"
        task = (
            f"SELECT value FROM image_properties WHERE image_id = '{item.id}' AND deleted = 0 "
            f"AND name = 'os_glance_import_task'"
        )
        host = (
            f"image_properties WHERE image_id = '{item.id}' AND deleted = 0 "
            f"AND name = 'os_glance_hash_op_host'"
        )
        if self.sql(
            "glance",
            f"SELECT id FROM tasks WHERE status = 'processing' AND {since} AND id IN ({task}) "
            f"AND EXISTS (SELECT 1 FROM {host})",
        ):
            self.sql("glance", f"DELETE FROM {host}")
            text = (
                f"{item.kind} {item.id}, which a Glance killed while it hashed lets nobody delete"
            )
            self._note(text, time.monotonic() - item.born)

    def _note(self, text: str, seconds: float) -> None:
        """Note what had to be freed, and the faults in the services so many seconds ago and since
        that explain it."""
        now = time.monotonic()
        if why := self.disturbed(now - seconds, now):
            self.helped.append(f"{text} [{why}]")
        else:
            self.unexplained.append(f"stuck: {text}")

    def lines(self) -> Iterator[dict[str, Any]]:
        """The log lines of all replicas."""
        for log_file in (
            replica.process.log for replica in self.replicas if replica.process.log.exists()
        ):
            with log_file.open(errors="replace") as log:
                for line in log:
                    with contextlib.suppress(ValueError):
                        if line.startswith("{"):
                            yield json.loads(line)

    def said(self) -> tuple[Counter[str], list[str]]:
        """What the workers logged, counted, and what of it tells of a bug."""
        counts, bugs = Counter[str](), Counter[str]()
        for line in self.lines():
            event = str(line.get("event", "?"))
            counts[event] += 1
            if event in BUGS or "exception" in line:
                error = str(
                    line.get("exception") or line.get("error") or line.get("reason") or ""
                ).strip()
                bugs[f"bug: {event}: {error.splitlines()[-1][:200] if error else line}"] += 1
            if event == "job_parked":
                reason = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID", str(line.get("reason", "")))
                bugs[f"dead letter: {line.get('handler')} {reason[:200]}"] += 1
        for replica in self.replicas:
            text = replica.process.log.read_text(errors="replace")
            # Lines that a full disk has cut may hold the word, inside of JSON
            if traces := re.findall(r"^Traceback.*(?:\n[ \t].*)*\n?(.*)", text, re.MULTILINE):
                bugs[f"bug: traceback in the log of {replica.name}: {traces[0][:200]}"] += len(
                    traces
                )
        return counts, [
            f"{text} ({count} times)" if count > 1 else text for text, count in bugs.items()
        ]

    def dead_letters(self) -> int:
        """How many dead letters there are."""
        return self.queues("worker", QUEUE).get(f"{QUEUE}.dead", 0)

    def grown(self, fresh: Replica) -> tuple[list[tuple[str, ...]], list[str]]:
        """A row for each life that was long enough, and what has grown in one.

        A replica that is handed its first lane late makes the threads of its pool late: they are no
        leak.
        """
        new = amounts(fresh.process.usage())
        rows, problems = list[tuple[str, ...]](), list[str]()
        for replica in self.replicas:
            for life, samples in replica.usage.items():
                warm = [amounts(usage) for at, usage in samples if at > samples[0][0] + WARM]
                if not warm or samples[-1][0] - samples[0][0] < WARM + LIVED:
                    continue
                tenth = max(1, len(warm) // 10)
                for name, most in MOST.items():
                    values = [one[name] for one in warm]
                    first, last = (
                        statistics.median(values[:tenth]),
                        statistics.median(values[-tenth:]),
                    )
                    minutes = (samples[-1][0] - samples[0][0]) / 60
                    rows.append(
                        (f"{replica.name}, life {life}, {minutes:.0f} min", name, f"{first:.1f}", f"{last:.1f}",
                         f"{max(values):.1f}")
                    )  # fmt: skip
                    pool = 0.0 if name == "MiB" else new[name] + MORE_THAN_FRESH[name]
                    if last - first > most and last > pool:
                        problems.append(
                            f"grows: {name} of {replica.name}: {first:.1f} to {last:.1f}"
                        )
        return rows, problems

    def at_rest(self, fresh: Replica) -> tuple[list[tuple[str, ...]], list[str]]:
        """A row for each replica, and what it has more than a fresh one; all are at rest."""
        rows, problems = list[tuple[str, ...]](), list[str]()
        new = amounts(fresh.process.usage())
        for replica in self.replicas:
            old = amounts(replica.process.usage())
            for name, value in old.items():
                rows.append(
                    (
                        f"{replica.name} at rest against a fresh one",
                        name,
                        f"{new[name]:.1f}",
                        f"{value:.1f}",
                        "",
                    )
                )
                if value - new[name] > MORE_THAN_FRESH[name]:
                    problems.append(
                        f"more than a fresh one: {name} of {replica.name}: {value:.1f}, "
                        f"{new[name]:.1f}"
                    )
        return rows, problems

    def contents(self, say: Callable[[str], None]) -> Iterator[str]:
        """Download everything and have Cinder make volumes of it: name what is not as it should
        be."""
        for user in self.users:
            for item in user.alive():
                wanted = user.content if item.kind == "upload" else user.hash_of_image
                found = user.person.sha256(item.id)
                say(f"{item.kind} {item.id}: {found[:12]}")
                if found != wanted:
                    yield f"other bytes: {item.kind} {item.id}: {found} and not {wanted}"
            for kind in ("image", "upload"):
                for item in user.of(kind, "there")[-1:]:
                    for target in TARGETS:
                        made = user.person.volume(item.id, target)
                        user.person.delete_volume(made.id)
                        if not made.cloned:
                            yield f"not a clone: a volume of {kind} {item.id} on {target}"
