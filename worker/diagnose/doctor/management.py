"""RabbitMQ's management API: what no AMQP client is told. Reads only; a password is in no message
of it."""

from __future__ import annotations

import base64
import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from worker.core.errors import Blocked, NotFound, Temporary

TIMEOUT = 10.0
# What of a policy makes messages go away that nobody has read, by the names it has there
LOSING = ("message-ttl", "max-length", "max-length-bytes", "expires")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The policies that apply to a queue: their names, and those parts that drop messages or the
    queue."""

    policies: tuple[str, ...] = ()
    losing: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Managed:
    """A vhost by the management API.

    `alarms` are resources that the nodes are short of. `rules` are told of queues that are there,
    and of others where we may read policies; `bound` has the exchanges that a queue gets messages
    of. `depths` has all queues of the vhost, with the number of their messages. None: the user may
    not see it.
    """

    alarms: tuple[str, ...] | None = None
    rules: Mapping[str, Rules] = field(default_factory=dict)
    bound: frozenset[str] | None = None
    depths: Mapping[str, int] | None = None


class Management:
    """One management API. Raises Temporary (no answer), Blocked (no rights), NotFound."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        port = f":{parts.port}" if parts.port else ""
        self.name = f"{parts.scheme}://{host}{port}"
        self._base = f"{self.name}{parts.path.rstrip('/')}/api"
        login = f"{unquote(parts.username or 'guest')}:{unquote(parts.password or 'guest')}"
        self._login = f"Basic {base64.b64encode(login.encode()).decode()}"
        # A proxy for the way out is none for the way in
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def cluster(self) -> str:
        """The cluster's name, which an AMQP connection to it is told too. Blocks."""
        return str(self._get("/overview").get("cluster_name") or "")

    def look(self, vhost: str, queues: Iterable[str], *, bound_to: str = "") -> Managed:
        """A vhost, its alarms, what policies say of `queues`, and the exchanges that `bound_to` is
        bound to. Blocks."""
        place = quote(vhost, safe="")
        policies = self._policies(place)
        rules = {}
        for name in queues:
            try:
                rules[name] = _applied(self._get(f"/queues/{place}/{quote(name, safe='')}"))
            except NotFound:
                if policies is not None:
                    rules[name] = _would_apply(name, policies)
        bound = self._bound(place, bound_to) if bound_to else None
        return Managed(alarms=self._alarms(), rules=rules, bound=bound, depths=self._depths(place))

    def _policies(self, place: str) -> tuple[list[Any], ...] | None:
        """The users' policies and the operators', of which one each applies to a queue."""
        try:
            return self._get(f"/policies/{place}"), self._get(f"/operator-policies/{place}")
        except (Blocked, NotFound):
            return None

    def _bound(self, place: str, queue: str) -> frozenset[str] | None:
        try:
            rows = self._get(f"/queues/{place}/{quote(queue, safe='')}/bindings")
        except (Blocked, NotFound):
            return None
        return frozenset(str(row["source"]) for row in rows if row["source"])

    def _depths(self, place: str) -> Mapping[str, int] | None:
        try:
            rows = self._get(f"/queues/{place}?columns=name,messages")
        except (Blocked, NotFound):
            return None
        # A queue that was made a moment ago has no number yet
        return {str(row["name"]): int(row.get("messages") or 0) for row in rows}

    def _alarms(self) -> tuple[str, ...] | None:
        try:
            nodes = self._get("/nodes")
        except (Blocked, NotFound):
            return None
        alarms = {"mem_alarm": "memory", "disk_free_alarm": "disk"}
        found = [
            f"{node['name']}: {what}"
            for node in nodes
            for key, what in alarms.items()
            if node.get(key) is True
        ]
        gone = [f"{node['name']}: not running" for node in nodes if node.get("running") is False]
        parted = [f"{node['name']}: network partition" for node in nodes if node.get("partitions")]
        return (*found, *gone, *parted)

    def _get(self, path: str) -> Any:
        request = urllib.request.Request(self._base + path, headers={"Authorization": self._login})
        try:
            with self._opener.open(request, timeout=TIMEOUT) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                text = f"{self.name}: GET {path}: {error.code}"
                if error.code == http.HTTPStatus.NOT_FOUND:
                    raise NotFound(text) from None
                if error.code in (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN):
                    raise Blocked(
                        f"{text}, its user lacks rights or its password is wrong"
                    ) from None
                raise Temporary(text) from None
        except urllib.error.URLError as error:
            raise Temporary(f"{self.name}: {error.reason}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Temporary(f"{self.name}: {error or type(error).__name__}") from None


def _applied(queue: Mapping[str, Any]) -> Rules:
    """Return the policies that RabbitMQ itself says apply to a queue."""
    definition = queue.get("effective_policy_definition") or {}
    names = (queue.get("policy"), queue.get("operator_policy"))
    return Rules(policies=tuple(name for name in names if name), losing=_losing(definition))


def _would_apply(name: str, kinds: Iterable[Iterable[Mapping[str, Any]]]) -> Rules:
    """Return the policies that would apply to a queue that does not exist yet: the highest of each
    kind, merged."""
    applied = []
    for policies in kinds:
        matching = [
            one
            for one in policies
            if one["apply-to"] != "exchanges" and _matches(str(one["pattern"]), name)
        ]
        applied += sorted(matching, key=lambda policy: int(policy.get("priority") or 0))[-1:]
    losing: dict[str, int] = {}
    for policy in applied:
        for key, value in _losing(policy["definition"]).items():
            losing[key] = min(value, losing.get(key, value))
    return Rules(policies=tuple(policy["name"] for policy in applied), losing=losing)


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error:
        # Erlang's expressions are nearly Python's
        return False


def _losing(definition: Mapping[str, Any]) -> dict[str, int]:
    return {key: int(definition[key]) for key in LOSING if key in definition}
