"""The faults of the soak: replicas that can be broken, and each kind of fault with a beginning and
an end."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from scripts.cloud import breakage
from scripts.cloud.operate import CINDER, GLANCE, KEYSTONE, PASSWORD, TARGETS, devcloud, groups
from scripts.cloud.people import HOME, Person
from tests.cloud.proxy import Proxy, Wire
from tests.worker_process import Usage, WorkerProcess

QUEUE = "image-volume-worker-soak"
# Seconds until systemd starts a worker again (RestartSec of the unit)
RESTART = 5.0
HOUR = 3600.0
# Seconds that a worker's request may take here; what is slow takes longer or less long
REQUEST = 10.0
# RabbitMQ gives up a silent client after twice this many seconds
HEARTBEAT = 10
# Seconds after a fault in a service during which that may still fail what users ask for
AFTERMATH = 60.0
SERVICES = (
    "mariadb", "rabbitmq", "memcached", "keystone", "cinder-api", "cinder-scheduler", "cinder-volume", "glance-api",
)  # fmt: skip
# Rules of Glance that an operator gets wrong
POLICIES = {
    "locations hidden": {
        "fetch_image_location": "role:nobody",
        "get_image_location": "role:nobody",
    },
    "copy-image forbidden": {"copy_image": "role:nobody"},
    "private images of others hidden": {"context_is_admin": "role:nobody"},
    "lists of images forbidden": {"get_images": "role:member and not role:admin"},
}


class Replica:
    """One worker with proxies between it and each service and the broker."""

    def __init__(self, name: str, folder: Path, logs: Path) -> None:
        self.name = name
        self.services = {
            "keystone": Proxy(KEYSTONE),
            "glance": Proxy(GLANCE),
            "cinder": Proxy(CINDER),
        }
        self.wire = Wire(5672)
        self.ready = False
        self.life = 0
        # By life: when, and what it used
        self.usage: dict[int, list[tuple[float, Usage]]] = {}
        self.deaths: list[int] = []
        self._folder = folder
        self._clock = folder / name
        self._clock.mkdir()
        self._lock = threading.RLock()
        self._wanted = False
        self._resources = contextlib.ExitStack()
        for one in (*self.services.values(), self.wire):
            self._resources.enter_context(one)
        for proxy in self.services.values():
            proxy.delay = REQUEST / 2
        environment = breakage.set_clock(self._clock, 0)
        broker = f"openstack:{PASSWORD}@127.0.0.1:{self.wire.port}"
        settings = groups(
            notifications={"transport_urls": f"rabbit://{broker}/", "queue": QUEUE},
            work={"url": f"amqp://{broker}/worker", "backoff_min": 1, "backoff_max": 15},
            cloud={"name": "operator", "api_timeout": REQUEST, "poll_max": 5},
            resync={"interval": 30},
            # A deletion that nobody heard of is proven by five looks in a minute and not in a day
            reclaim={"grace": 60, "max_at_once": 50},
        )
        self.process = WorkerProcess(logs, settings, clouds=self._clouds(), environment=environment)
        named = logs / f"{name}.log"
        self.process.log = named

    def _clouds(self) -> Path:
        clouds = yaml.safe_load((HOME / "clouds.yaml").read_text())
        entry = clouds["clouds"]["operator"]
        entry["auth"]["auth_url"] = f"{self.services['keystone'].url}/v3"
        entry["image_endpoint_override"] = self.services["glance"].url
        entry["block_storage_endpoint_override"] = (
            f"{self.services['cinder'].url}/v3/{Person('operator').project_id}"
        )
        file = self._clock / "clouds.yaml"
        file.write_text(yaml.safe_dump(clouds))
        file.chmod(0o600)
        return file

    def start(self) -> None:
        """Start the worker if it does not run."""
        with self._lock:
            if not self.process.running:
                self.life += 1
                self.usage[self.life] = []
                self.process.start()
            self._wanted = True

    def kill(self) -> None:
        """Kill the worker with -9 and leave it dead."""
        with self._lock:
            self._wanted = self.ready = False
            self.process.kill()

    def stop(self) -> int:
        """Ask the worker to stop; its exit status."""
        with self._lock:
            self._wanted = self.ready = False
            return self.process.stop(within=90)

    def close(self) -> None:
        """Kill the worker and end the proxies."""
        self.kill()
        self._resources.close()

    def look(self) -> None:
        """Note whether the worker is ready and what it uses; start it again if it has died by
        itself."""
        self.ready = self.process.probe("/readyz")[0] == 200
        with self._lock:
            if not self._wanted:
                return
            if self.process.running:
                with contextlib.suppress(OSError):
                    self.usage[self.life].append((time.monotonic(), self.process.usage()))
                return
            self.deaths.append(self.life)
            self.start()

    def set_clock(self, seconds: float) -> None:
        """Set the worker's clock this far off."""
        breakage.set_clock(self._clock, seconds)

    def tokens(self) -> set[str]:
        """The tokens that the worker has used since the last call."""
        found: set[str] = set()
        for proxy in self.services.values():
            found |= proxy.tokens - {""}
            proxy.tokens.clear()
        return found


@dataclass
class Stage:
    """All that can be broken."""

    replicas: list[Replica]
    admin: Person
    logs: Path


@dataclass
class Fault:
    """Something broken for `lasts` seconds."""

    kind: str
    text: str
    touches: frozenset[str]
    """No two faults that touch the same thing at once."""
    lasts: float
    broken: AbstractContextManager[Any]
    disturbs: bool = False
    """A service itself may fail what users ask for meanwhile."""
    began: float = 0.0
    ended: float = 0.0
    ready: float = 0.0
    """When all replicas were ready again."""
    problem: str = ""
    """Why it could not be begun or ended."""


Draw = Callable[[Stage, random.Random], Fault]
KINDS: dict[str, Draw] = {}


def kind(name: str) -> Callable[[Callable[[Stage, random.Random], Fault]], Draw]:
    """Have the soak draw faults of this kind by the decorated function."""

    def decorate(draw: Draw) -> Draw:
        KINDS[name] = draw
        return draw

    return decorate


@kind("kill")
def kill(stage: Stage, dice: random.Random) -> Fault:
    """SIGKILL, and started again as systemd would."""
    replica = dice.choice(stage.replicas)

    @contextlib.contextmanager
    def broken() -> Iterator[None]:
        replica.kill()
        try:
            yield
        finally:
            replica.start()

    return Fault("kill", f"{replica.name} killed", frozenset({replica.name}), RESTART, broken())


@kind("freeze")
def freeze(stage: Stage, dice: random.Random) -> Fault:
    """SIGSTOP, at times for so long that the broker gives the replica up."""
    replica = dice.choice(stage.replicas)
    seconds = dice.choice((5.0, 15.0, 5.0 * HEARTBEAT))

    @contextlib.contextmanager
    def broken() -> Iterator[None]:
        replica.process.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            replica.process.signal(signal.SIGCONT)

    return Fault(
        "freeze",
        f"{replica.name} frozen for {seconds:.0f} s",
        frozenset({replica.name}),
        seconds,
        broken(),
    )


def between(name: str, answers: dict[str, list[Any]], wire: str | None) -> Draw:
    """Draw a fault between replicas and a service, or the broker if `wire` says which of a Wire's
    faults."""

    def draw(stage: Stage, dice: random.Random) -> Fault:
        place = dice.choice(("keystone", "glance", "cinder", *(("broker",) if wire else ())))
        replicas = stage.replicas if dice.random() < 0.5 else [dice.choice(stage.replicas)]
        share, seed, delay = (
            dice.choice((0.3, 1.0)),
            dice.random(),
            dice.choice((0.2, 1.0, 1.5)) * REQUEST,
        )

        @contextlib.contextmanager
        def broken() -> Iterator[None]:
            own = random.Random(seed)

            def fault(method: str, path: str) -> Any:
                kinds = answers["GET" if method == "GET" else "write"]
                return own.choice(kinds) if own.random() < share else None

            for replica in replicas:
                if place == "broker":
                    replica.wire.delay, replica.wire.fault = delay / 5, wire
                else:
                    replica.services[place].delay, replica.services[place].fault = delay, fault
            try:
                yield
            finally:
                for replica in replicas:
                    replica.wire.fault = None if place == "broker" else replica.wire.fault
                    if place != "broker":
                        replica.services[place].fault = lambda method, path: None

        whose = "all replicas" if len(replicas) == len(stage.replicas) else replicas[0].name
        much = "" if place == "broker" or share == 1 else ", a third of it"
        touches = frozenset(f"{place} of {replica.name}" for replica in replicas)
        seconds = dice.choice((5.0, 15.0, 30.0))
        return Fault(
            name, f"{name}: {place} of {whose}{much}, {seconds:.0f} s", touches, seconds, broken()
        )

    return draw


KINDS["cut"] = between("cut", {"GET": ["drop", "cut"], "write": ["drop", "cut", "lose"]}, "cut")
KINDS["slow"] = between("slow", {"GET": ["delay"], "write": ["delay"]}, "slow")
KINDS["drip"] = between("drip", {"GET": ["drip"], "write": ["drip"]}, "drip")
KINDS["garbage"] = between("garbage", {"GET": ["garbage"], "write": ["garbage"]}, "garbage")
KINDS["errors"] = between(
    "errors", {"GET": [429, 500, 503, 504], "write": [429, 500, 503, 504]}, None
)


@kind("connections")
def connections(stage: Stage, dice: random.Random) -> Fault:
    """RabbitMQ closes all connections, of the services too."""

    @contextlib.contextmanager
    def broken() -> Iterator[None]:
        breakage.close_connections(times=dice.choice((1, 5)))
        yield

    return Fault(
        "connections",
        "RabbitMQ closes all connections",
        frozenset({"rabbitmq"}),
        0.0,
        broken(),
        disturbs=True,
    )


@kind("token")
def token(stage: Stage, dice: random.Random) -> Fault:
    """A replica's tokens are revoked in Keystone."""
    replica = dice.choice(stage.replicas)

    @contextlib.contextmanager
    def broken() -> Iterator[None]:
        breakage.revoke(stage.admin, replica.tokens())
        yield

    touches = frozenset({"memcached", "keystone", "mariadb"})
    return Fault(
        "token", f"tokens of {replica.name} revoked", touches, 0.0, broken(), disturbs=True
    )


@kind("clock")
def clock(stage: Stage, dice: random.Random) -> Fault:
    """A replica's clock jumps, and back."""
    replica = dice.choice(stage.replicas)
    seconds = dice.choice((-2 * HOUR, -60.0, 60.0, 2 * HOUR))

    @contextlib.contextmanager
    def broken() -> Iterator[None]:
        replica.set_clock(seconds)
        try:
            yield
        finally:
            replica.set_clock(0)

    text = f"clock of {replica.name} {seconds:+.0f} s"
    return Fault("clock", text, frozenset({f"clock of {replica.name}"}), 30.0, broken())


@kind("queue")
def queue(stage: Stage, dice: random.Random) -> Fault:
    """A queue of the worker's is deleted: the intake, a lane, or one of those that delay."""
    what = dice.choice(("intake", "lane", "delay", "all delays", "stray"))
    lane = dice.choice(("upload", "reclaim", *(f"prewarm.{target}" for target in TARGETS)))
    level = dice.randrange(6)

    @contextlib.contextmanager
    def broken() -> Iterator[None]:
        chosen = {
            "intake": lambda name: True,
            "lane": lambda name: name == f"{QUEUE}.{lane}",
            "delay": lambda name: name == f"{QUEUE}_celery_delayed_{level}",
            "all delays": lambda name: name.startswith(f"{QUEUE}_celery_delayed_"),
            "stray": lambda name: name == f"{QUEUE}.stray",
        }[what]
        vhost = "/" if what == "intake" else "worker"
        for name in filter(chosen, breakage.queues(vhost, QUEUE)):
            breakage.delete_queue(vhost, name)
        yield

    detail = {"lane": f"lane {lane}", "delay": f"delay {level}"}.get(what, what)
    return Fault("queue", f"queue deleted: {detail}", frozenset({"rabbitmq"}), 0.0, broken())


@kind("disk")
def disk(stage: Stage, dice: random.Random) -> Fault:
    """A disk is full: the one with the workers' logs, or Glance's staging area."""
    logs = dice.random() < 0.5
    broken = breakage.disk_full(stage.logs) if logs else breakage.staging_full()
    name = "the workers' logs" if logs else "Glance's staging area"
    return Fault("disk", f"disk full: {name}", frozenset({name}), 20.0, broken, disturbs=not logs)


@kind("policy")
def policy(stage: Stage, dice: random.Random) -> Fault:
    """Glance's policy file is changed for a while."""
    name = dice.choice(list(POLICIES))
    seconds = dice.choice((15.0, 60.0))
    broken = breakage.glance_policy(**POLICIES[name])
    return Fault(
        "policy",
        f"policy: {name}, {seconds:.0f} s",
        frozenset({"policy"}),
        seconds,
        broken,
        disturbs=True,
    )


@kind("service")
def service(stage: Stage, dice: random.Random) -> Fault:
    """A service of the cloud is restarted."""
    name = dice.choice(SERVICES)

    @contextlib.contextmanager
    def broken() -> Iterator[None]:
        with breakage.stopped(name):
            yield
        with_heartbeat()

    seconds = dice.choice((0.0, 10.0))
    return Fault(
        "service",
        f"{name} stopped for {seconds:.0f} s",
        frozenset({name}),
        seconds,
        broken(),
        disturbs=True,
    )


@kind("broker")
def broker(stage: Stage, dice: random.Random) -> Fault:
    """The broker's node is killed with -9 and started again."""

    @contextlib.contextmanager
    def broken() -> Iterator[None]:
        with breakage.broker_node_lost():
            yield
        with_heartbeat()

    return Fault(
        "broker",
        "RabbitMQ killed",
        frozenset({"rabbitmq"}),
        dice.choice((1.0, 10.0)),
        broken(),
        disturbs=True,
    )


@kind("memory")
def memory(stage: Stage, dice: random.Random) -> Fault:
    """RabbitMQ is short of memory."""
    broken = breakage.broker_short_of_memory()
    return Fault(
        "memory",
        "RabbitMQ is short of memory",
        frozenset({"rabbitmq"}),
        15.0,
        broken,
        disturbs=True,
    )


@kind("reload")
def reload(stage: Stage, dice: random.Random) -> Fault:
    """A replica reads its configuration anew."""
    replica = dice.choice(stage.replicas)

    @contextlib.contextmanager
    def broken() -> Iterator[None]:
        replica.process.signal(signal.SIGHUP)
        yield

    return Fault("reload", f"{replica.name} reloads", frozenset({replica.name}), 0.0, broken())


def with_heartbeat() -> None:
    """Have RabbitMQ notice a frozen replica soon; it forgets that when it restarts."""
    with contextlib.suppress(subprocess.SubprocessError):
        breakage.heartbeat(HEARTBEAT)


@dataclass
class Breaker:
    """Draws faults and runs them, each in a thread of its own; all kinds come equally often, in
    random order."""

    stage: Stage
    kinds: list[str]
    dice: random.Random
    say: Callable[[str], None]
    faults: list[Fault] = field(default_factory=list)
    _bag: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def next(self) -> None:
        """Begin another fault, of the first kind in the bag that touches nothing that is broken at
        the moment."""
        taken = frozenset[str]().union(*(fault.touches for fault in self.faults if not fault.ended))
        for _ in range(50):
            if not self._bag:
                self._bag = self.dice.sample(self.kinds, len(self.kinds))
            name = self._bag.pop()
            fault = KINDS[name](self.stage, self.dice)
            if not fault.touches & taken:
                break
            self._bag.insert(0, name)
        else:
            self.say("everything that could be broken is")
            return
        fault.began = time.monotonic()
        self.faults.append(fault)
        self.say(fault.text)
        self._threads.append(threading.Thread(target=self._run, args=(fault,)))
        self._threads[-1].start()

    def _run(self, fault: Fault) -> None:
        try:
            with fault.broken:
                self._over.wait(fault.lasts)
        except Exception as error:
            # Told at the end: a fault that was not restored spoils all that follows
            fault.problem = f"{type(error).__name__}: {error}"
            self.say(f"{fault.text}: {fault.problem}")
        fault.ended = time.monotonic()

    def end(self) -> None:
        """End all faults and return once each has restored what it broke."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def noted(self) -> None:
        """Note for the faults that have ended whether all replicas are ready again."""
        if all(replica.ready for replica in self.stage.replicas):
            for fault in self.faults:
                if fault.ended and not fault.ready:
                    fault.ready = time.monotonic()

    def disturbed(self, begin: float, end: float) -> str:
        """The faults in the services themselves between two times, or soon before; empty if there
        was none."""
        found = Counter(
            fault.text
            for fault in self.faults
            if fault.disturbs
            and fault.began <= end
            and (not fault.ended or fault.ended + AFTERMATH >= begin)
        )
        return ", ".join(found)

    def restored(self) -> None:
        """Have all services run, whatever a fault has left."""
        devcloud("start", *SERVICES)
