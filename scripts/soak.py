"""The soak: replicas under load, with a fault every few seconds. Does everything converge in the
end?"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from scripts.cloud import breakage
from scripts.cloud.people import Person
from scripts.soak_faults import KINDS, QUEUE, Breaker, Replica, Stage, with_heartbeat
from scripts.soak_judge import Judge
from scripts.soak_load import REFUSED, User

# Seconds between two looks at a replica; between two steps of a user
LOOK, PAUSE = 1.0, 4.0
# Seconds for everything to converge once nothing is broken: what a service has lost takes it 5 to
# 12 minutes to give up
PATIENCE = 1200.0
# Seconds until a worker with nothing to do has given back what it needs only for work
REST = 45.0
# Bytes of the file system with the logs
ROOM = "1g"
BEGAN = time.monotonic()


def say(text: str) -> None:
    """Print a line with the time since the beginning."""
    minutes, seconds = divmod(int(time.monotonic() - BEGAN), 60)
    print(f"{minutes:3}:{seconds:02}  {text}", flush=True)


def parsed() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="how long things are broken (60)"
    )
    parser.add_argument("--every", type=float, default=20.0, help="seconds between two faults (20)")
    parser.add_argument("--replicas", type=int, default=3, help="workers (3)")
    parser.add_argument("--seed", type=int, help="draws the same faults and the same load again")
    parser.add_argument(
        "--faults", default=",".join(KINDS), help="kinds to draw from (all): %(default)s"
    )
    parser.add_argument("--logs", type=Path, help="where to keep the logs when something fails")
    parser.add_argument("--only-parse", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.kinds = options.faults.split(",")
    if unknown := sorted(set(options.kinds) - set(KINDS)):
        parser.error(f"no such faults: {', '.join(unknown)} (have: {', '.join(KINDS)})")
    if options.replicas < 1 or options.minutes <= 0 or options.every <= 0:
        parser.error("--minutes, --every and --replicas are greater than 0")
    return options


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own, which a fault can fill."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def looked_at(replicas: list[Replica], breaker: Breaker) -> Iterator[None]:
    """Look at each replica once a second, each in a thread of its own: a frozen one does not
    answer."""
    leave = threading.Event()

    def looks(replica: Replica) -> None:
        while not leave.wait(LOOK):
            replica.look()
            breaker.noted()

    threads = [threading.Thread(target=looks, args=(replica,)) for replica in replicas]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        leave.set()
        for thread in threads:
            thread.join()


class Soak:
    """One run."""

    def __init__(self, options: argparse.Namespace, folder: Path, logs: Path) -> None:
        self.options = options
        self.failures: list[str] = []
        self._folder, self._logs = folder, logs
        self._dice = random.Random(options.seed)
        self._admin, self._operator = Person("admin"), Person("operator")
        self._replicas = [
            Replica(f"replica-{number + 1}", folder, logs) for number in range(options.replicas)
        ]
        stage = Stage(self._replicas, self._admin, logs)
        self.breaker = Breaker(stage, options.kinds, self._dice, say)
        self._users = [
            User(Person(name), random.Random(f"{options.seed} {name}"), self.breaker.disturbed)
            for name in ("alice", "bob")
        ]
        self.judge = Judge(
            self._operator, self._admin, self._users, self._replicas, self.breaker.disturbed
        )

    def run(self) -> None:
        """Set the scene, break things, and judge what has come of it."""
        with_heartbeat()
        # By a private image of another project the worker proves that Glance hides nothing from it
        witness = self._admin.image(
            "soak-witness", mebibytes=1, visibility="private", image_volume_prewarm="no"
        )
        try:
            for user in self._users:
                user.prepare()
            self.judge.before = frozenset(volume["id"] for volume in self._operator.volumes())
            for replica in self._replicas:
                replica.start()
            for replica in self._replicas:
                replica.process.wait_ready()
            with looked_at(self._replicas, self.breaker):
                self._broken()
                self._judged()
        except KeyboardInterrupt:
            self.failures.append("interrupted")
            raise
        finally:
            try:
                self._cleared()
            finally:
                for replica in self._replicas:
                    replica.close()
                self._admin.delete_image(witness)
                breakage.heartbeat(breakage.HEARTBEAT)
                breakage.remove_glance_policy()

    def _broken(self) -> None:
        leave = threading.Event()
        users = [threading.Thread(target=user.work, args=(leave, PAUSE)) for user in self._users]
        for thread in users:
            thread.start()
        say(f"{len(self._replicas)} replicas are ready; the load begins")
        try:
            end = time.monotonic() + 60 * self.options.minutes
            while time.monotonic() < end:
                time.sleep(min(self.options.every, max(0.0, end - time.monotonic())))
                if time.monotonic() < end:
                    self.breaker.next()
                if dead := [thread for thread in users if not thread.is_alive()]:
                    raise RuntimeError(f"{len(dead)} users have stopped working")
        finally:
            say("nothing more is broken")
            self.breaker.end()
            leave.set()
            for thread in users:
                thread.join()
            self.breaker.restored()
            with_heartbeat()
        for user in self._users:
            user.complete()

    def _judged(self) -> None:
        began, told, problems = time.monotonic(), 0.0, ["nothing looked at yet"]
        while problems and time.monotonic() - began < PATIENCE:
            with contextlib.suppress(*REFUSED):
                self.judge.help()
            for user in self._users:
                user.settle()
            problems = self.judge.problems()
            if problems and time.monotonic() - told > 30:
                told = time.monotonic()
                say(f"{len(problems)} things to converge: {'; '.join(problems[:3])}")
            time.sleep(2)
        self.took = time.monotonic() - began
        self.failures += problems
        say(
            f"converged after {self.took:.0f} s"
            if not problems
            else f"not converged after {self.took:.0f} s"
        )
        self.failures += self.judge.contents(say)
        if letters := self.judge.dead_letters():
            self.failures.append(f"{letters} dead letters")
        for user in self._users:
            self.failures += user.problems
        self.failures += self.judge.unexplained
        self.failures += [
            f"fault: {fault.text}: {fault.problem}"
            for fault in self.breaker.faults
            if fault.problem
        ]
        self.failures += [f"died: {replica.name} in its life {life}" for replica in self._replicas
                          for life in replica.deaths]  # fmt: skip
        self.counts, bugs = self.judge.said()
        self.failures += bugs
        self._usage()

    def _usage(self) -> None:
        fresh = Replica("fresh", self._folder, self._logs)
        try:
            fresh.start()
            fresh.process.wait_ready()
            time.sleep(REST)
            self.rows, grown = self.judge.grown(fresh)
            more, larger = self.judge.at_rest(fresh)
        finally:
            fresh.close()
        self.rows += more
        self.failures += [*grown, *larger]

    def _cleared(self) -> None:
        """Delete all that is there, with the workers at work; name what stays."""
        say("cleaning up")
        left = ["everything"]
        end = time.monotonic() + (PATIENCE if not self.failures else 120.0)
        while left and time.monotonic() < end:
            for user in self._users:
                user.clear()
            with contextlib.suppress(*REFUSED):
                self.judge.help()
            later = ("queue", "not ready", "source volume")
            left = [
                text for text in self.judge.problems() if not any(word in text for word in later)
            ]
            time.sleep(2)
        self.failures += [f"after everything was deleted: {text}" for text in left]
        for replica in self._replicas:
            if replica.process.running and (status := replica.stop()):
                self.failures.append(f"{replica.name} stopped with status {status}")
        for user in self._users:
            if user.source:
                user.person.delete_volume(user.source)
        for vhost in ("/", "worker"):
            for name in breakage.queues(vhost, QUEUE):
                with contextlib.suppress(Exception):
                    breakage.delete_queue(vhost, name)

    def report(self) -> None:
        """Print the tables."""
        table(
            ("fault", "times", "longest until all replicas were ready"),
            faults_by_kind(self.breaker),
        )
        if hasattr(self, "rows"):
            table(("", "", "before", "after", "most"), self.rows)
        for user in self._users:
            done = ", ".join(f"{count} {name}" for name, count in sorted(user.done.items()))
            say(f"{user.person.connection.config.name}: {done}")
            for text, count in user.explained.items():
                say(f"  explained, {count} times: {text}")
        for text in self.judge.helped:
            say(f"  freed by the administrator: {text}")
        if hasattr(self, "counts"):
            say(
                "logged: "
                + ", ".join(f"{event} {count}" for event, count in self.counts.most_common(40))
            )


def faults_by_kind(breaker: Breaker) -> list[tuple[str, ...]]:
    """A row for each kind. Faults overlap: what a replica waited for may have been another one."""
    rows = []
    for name in breaker.kinds:
        faults = [fault for fault in breaker.faults if fault.kind == name]
        waits = [fault.ready - fault.ended for fault in faults if fault.ready]
        rows.append((name, str(len(faults)), f"{max(waits):.0f} s" if waits else ""))
    return rows


def table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print rows as Markdown."""
    for row in (titles, tuple("---" for _ in titles), *rows):
        print("| " + " | ".join(row) + " |")


def interrupted(*_: object) -> None:
    """Let `finally` restore everything."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Run it and say how it went."""
    options = parsed()
    if options.only_parse:
        return 0
    options.seed = random.randrange(1 << 30) if options.seed is None else options.seed
    # A background job of a shell ignores SIGINT
    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTERM, interrupted)
    print(f"seed {options.seed}", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="image-volume-worker-soak.") as name,
        contextlib.ExitStack() as stack,
    ):
        logs = stack.enter_context(small_disk(Path(name) / "logs"))
        soak = Soak(options, Path(name), logs)
        status = 0
        try:
            soak.run()
        except KeyboardInterrupt:
            status = 130
        except Exception as error:
            soak.failures.append(f"the soak itself: {type(error).__name__}: {error}")
            raise
        finally:
            soak.report()
            for text in soak.failures:
                print(f"FAILED  {text}")
            if soak.failures:
                kept = options.logs or Path(
                    tempfile.mkdtemp(prefix="image-volume-worker-soak-logs.")
                )
                shutil.copytree(logs, kept, dirs_exist_ok=True)
                print(f"the workers' logs: {kept}")
            print(
                f"seed {options.seed}: "
                f"{'FAILED' if soak.failures else 'everything converged, nothing grows'}"
            )
        return status or bool(soak.failures)


if __name__ == "__main__":
    sys.exit(main())
