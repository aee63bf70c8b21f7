"""The cloud by openstacksdk: the only module that imports it. Requests in, values and our own
errors out."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import os
import re
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar, cast
from urllib.parse import parse_qsl, urlencode, urlsplit

import keystoneauth1.exceptions as ksa
import openstack.config
import openstack.exceptions
import requests
import structlog
from keystoneauth1.identity.base import BaseIdentityPlugin
from openstack.config.loader import CONFIG_FILES
from openstack.connection import Connection

from worker.core.cloud import LISTED, Image, ImageTask, Location, NewVolume, Quota, Store, Volume
from worker.core.errors import Blocked, Conflict, Malformed, Misconfigured, NotFound, Temporary
from worker.core.pool import Pool, VolumeType
from worker.core.target import TAG
from worker.engine.retry import reading
from worker.observe.metrics import Metrics, release
from worker.openstack.deadline import Adapter, Deadline
from worker.openstack.survey import Clock, Limit, Login, Service, Shown

PAGE = 1000
# Of a listing: ten million rows. One with more never ends
MOST_PAGES = 10_000
# After all places where openstacksdk looks by itself
OWN_CLOUDS = "/etc/image-volume-worker/clouds.yaml"
# Seconds; of a Retry-After that asks for more
LONGEST_WAIT = 900.0
# Glance's version that has POST /v2/images/{id}/locations
LOCATION_API = (2, 17)
KEYSTONES = re.compile(r"(?:/\w+)*/v3/(?:auth|projects)\b")
"""Paths of Keystone's, of which no other service has any."""
PATCH_TYPE = "application/openstack-images-v2.1-json-patch"
# Fields of every image that are no properties of its own; a hash and two links a listed image would
# be a third of it
BASE = frozenset({
    "id", "name", "status", "owner", "disk_format", "container_format", "visibility", "created_at", "updated_at",
    "checksum", "os_hash_algo", "os_hash_value", "self", "file", "schema", "stores", "direct_url",
})  # fmt: skip
UNANSWERED = (
    ksa.ClientException,
    ksa.RetriableConnectionFailure,
    openstack.exceptions.SDKException,
    requests.RequestException,
)
OURS = (Temporary, Blocked, NotFound, Malformed, Misconfigured)
T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who we are to the cloud: the internal project, and the roles that our token carries."""

    project_id: str
    roles: frozenset[str]


def connect(*, name: str | None, timeout: float, concurrency: int) -> Connection:
    """A connection that has not asked anything yet. `name` is an entry of clouds.yaml; else
    OS_CLOUD, else OS_*.

    Raises Misconfigured if there are no credentials to be found. `timeout` in seconds, for each
    request.
    """
    try:
        region = openstack.config.OpenStackConfig(
            app_name="image-volume-worker",
            app_version=release(),
            config_files=[*CONFIG_FILES, OWN_CLOUDS],
        ).get_one(cloud=name or None, api_timeout=timeout)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            session = region.get_session()
            connection = Connection(config=region)
    except (openstack.exceptions.SDKException, ksa.ClientException) as error:
        named = os.environ.get("OS_CLIENT_CONFIG_FILE", "")
        hidden = [
            file
            for file in (named, *CONFIG_FILES, OWN_CLOUDS)
            if os.path.exists(file) and not os.access(file, os.R_OK)
        ]
        looked = (
            "looked in OS_CLIENT_CONFIG_FILE, ., ~/.config/openstack, /etc/openstack and "
            "/etc/image-volume-worker"
        )
        if hidden:
            looked = f"may not read {', '.join(hidden)}"
        raise Misconfigured(
            [f"[cloud]: no usable credentials: {error} ({looked} for clouds.yaml)"]
        ) from error
    except Exception as error:
        # What is not where it belongs in a clouds.yaml, or no YAML, surprises openstacksdk in many
        # ways
        raise Misconfigured(
            [f"[cloud]: clouds.yaml or OS_* variables make no sense: {_line(error)}"]
        ) from error
    if not session.auth or not hasattr(session.auth, "get_access"):
        raise Misconfigured(
            [
                (
                    "[cloud]: no credentials: set name, OS_CLOUD or OS_* (password or application "
                    "credential)"
                )
            ]
        )
    # requests keeps 10 connections a host otherwise, and opens and closes the rest for every
    # request
    pool = Adapter(pool_connections=8, pool_maxsize=concurrency)
    session.session.mount("http://", pool)
    session.session.mount("https://", pool)
    return connection


def count_keystone(connection: Connection, metrics: Metrics) -> None:
    """Have Keystone's answers counted; those of the other services are where they are read.

    keystoneauth fetches a token whenever it needs one, under whatever is being asked then.
    """

    def heard(response: requests.Response, *_: object, **__: object) -> None:
        if KEYSTONES.match(urlsplit(response.url).path):
            metrics.api_requests.labels(
                "keystone", response.request.method or "", str(response.status_code)
            ).inc()

    connection.session.session.hooks["response"].append(heard)


class OpenStackCloud:
    """`worker.core.cloud.Cloud` on a real one. Threads carry the requests, `concurrency` of them at
    once.

    `admin_role` is the role that makes Glance and Cinder show what belongs to others, `timeout` how
    many seconds a request may take in all, with the token and the versions that it may have to ask
    for first.
    """

    def __init__(
        self,
        *,
        connection: Connection,
        metrics: Metrics,
        concurrency: int = 16,
        admin_role: str = "admin",
        timeout: float = 30.0,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._connection = connection
        self._metrics = metrics
        self._admin_role = admin_role
        self._threads = ThreadPoolExecutor(max_workers=concurrency, thread_name_prefix="api")
        self._project_id = ""
        self._timeout = timeout
        self._under_way: set[Deadline] = set()
        self._sleep = sleep
        self._strange = ""

    def close(self) -> None:
        """Let go of threads and connections; requests under way end with an error."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for deadline in tuple(self._under_way):
            deadline.cut()
        self._connection.session.session.close()

    async def identity(self) -> Identity:
        """Our project and roles, by a token that is fetched if there is none."""

        def ask() -> Identity:
            session = self._connection.session
            # connect() has made sure that it is a plugin of Keystone's
            access = cast("BaseIdentityPlugin", session.auth).get_access(session)
            return Identity(
                project_id=access.project_id or "", roles=frozenset(access.role_names or ())
            )

        return await self._retried("keystone", lambda: self._guarded("keystone", "POST", ask))

    async def find_project(self, name: str) -> str:
        """The id of the project that has this name or id; NotFound if there is none, Blocked if we
        may not look."""

        def ask() -> str:
            try:
                # The type of the connection allows for Keystone v2, which has been gone for years
                identity: Any = self._connection.identity
                return str(identity.find_project(name, ignore_missing=False).id)
            except openstack.exceptions.ForbiddenException as error:
                raise Blocked(f"keystone: may not look for projects: {_line(error)}") from error
            except openstack.exceptions.NotFoundException as error:
                raise NotFound(f"keystone: no project {name}") from error
            except openstack.exceptions.DuplicateResource as error:
                raise Blocked(
                    f"keystone: several projects are named {name}: give the id"
                ) from error

        return await self._retried("keystone", lambda: self._guarded("keystone", "GET", ask))

    async def get_image(self, image_id: str) -> Image:
        return await self._read("image", f"/v2/images/{image_id}", _image, certain=image_id)

    async def list_images(self) -> AsyncIterator[Image]:
        # Glance lists either hidden images or the others, never both
        for hidden in ("false", "true"):
            query = {"status": f"in:{','.join(LISTED)}", "visibility": "all", "os_hidden": hidden}
            async for image in self._images(query, limit=PAGE):
                yield image

    async def find_witness(self) -> str:
        project_id = await self._own_project()
        async for image in self._images({"visibility": "private"}, limit=100):
            if image.owner and image.owner != project_id:
                return image.id
        return ""

    async def find_volume_witness(self) -> str:
        project_id = await self._own_project()
        # Without the right to see all, Cinder passes `all_tenants` over in silence. Some hundred of
        # the newest may all be ours, and then some of the oldest are not
        for order in ("desc", "asc"):
            query = urlencode({"all_tenants": 1, "limit": 100, "sort": f"created_at:{order}"})
            rows = await self._read(
                "block-storage",
                f"/volumes/detail?{query}",
                lambda answer: [_volume(row) for row in answer["volumes"]],
            )
            for volume in rows:
                if volume.project_id and volume.project_id != project_id:
                    return volume.id
        return ""

    async def get_locations(self, image_id: str) -> tuple[Location, ...] | None:
        try:
            return await self.read_locations(image_id) or None
        except (NotFound, Blocked):
            # Glance before 2.17, or we lack the role service: the image itself shows them if the
            # operator lets it
            shown = await self._read(
                "image", f"/v2/images/{image_id}", _shown_locations, certain=image_id
            )
            return shown or None

    async def shows_locations(self) -> bool:
        """Whether Glance lets us read where the data of images lies; True while there is no image
        to ask about."""
        for image in await self.newest_images(limit=5, status="active"):
            with contextlib.suppress(NotFound):
                if await self.get_locations(image.id) is not None:
                    return True
                # Empty while an image is being deleted: one that is still active settles it
                if (await self.get_image(image.id)).status == "active":
                    return False
        return True

    async def copy_image(self, image_id: str, stores: Iterable[str]) -> None:
        body = {
            "method": {"name": "copy-image"},
            "stores": list(stores),
            "all_stores_must_succeed": False,
        }
        await self._write("image", "POST", f"/v2/images/{image_id}/import", body)

    async def add_location(self, image_id: str, url: str) -> None:
        patch = [{"op": "add", "path": "/locations/-", "value": {"url": url, "metadata": {}}}]
        await self._write(
            "image", "PATCH", f"/v2/images/{image_id}", patch, content_type=PATCH_TYPE
        )

    async def import_location(self, image_id: str, url: str) -> None:
        await self._write(
            "image", "POST", f"/v2/images/{image_id}/locations", {"url": url, "validation_data": {}}
        )

    async def imports_locations(self) -> bool:
        return await self.image_api_version() >= LOCATION_API

    async def list_tasks(self, image_id: str) -> tuple[ImageTask, ...]:
        def newest_first(answer: Any) -> tuple[ImageTask, ...]:
            rows = sorted(
                _rows(answer, "tasks"), key=lambda row: str(row.get("created_at")), reverse=True
            )
            return tuple(_task(row) for row in rows)

        return await self._read("image", f"/v2/images/{image_id}/tasks", newest_first)

    async def list_members(self, image_id: str) -> Mapping[str, str]:
        return await self._read(
            "image",
            f"/v2/images/{image_id}/members",
            lambda answer: {
                str(row["member_id"]): str(row["status"]) for row in _rows(answer, "members")
            },
        )

    async def set_properties(self, image_id: str, properties: Mapping[str, str]) -> None:
        patch = [_change(name, value) for name, value in properties.items()]
        await self._write(
            "image", "PATCH", f"/v2/images/{image_id}", patch, content_type=PATCH_TYPE
        )

    async def remove_from_store(self, image_id: str, store: str) -> None:
        await self._write("image", "DELETE", f"/v2/stores/{store}/{image_id}")

    async def has_admin_role(self) -> bool:
        """Whether our token carries the role that is configured to show what belongs to others. No
        proof that it does.

        Glance's policy decides what the role is worth: see `find_witness`.
        """
        return self._admin_role in (await self.identity()).roles

    async def list_stores(self) -> tuple[Store, ...]:
        # Since Glance 2.15, for the role admin; before that there is a list of names only
        for path in ("/v2/info/stores/detail", "/v2/info/stores"):
            with contextlib.suppress(NotFound):
                return await self._read("image", path, _each("stores", _store))
        return ()

    async def import_methods(self) -> frozenset[str]:
        """The image import methods that Glance offers."""
        return await self._read(
            "image",
            "/v2/info/import",
            lambda answer: frozenset(
                str(method) for method in answer.get("import-methods", {}).get("value", ())
            ),
        )

    async def list_volume_types(self) -> Mapping[str, str]:
        """Names of the volume types by id."""
        return await self._read(
            "block-storage",
            "/types?is_public=None",
            lambda answer: {
                str(row["id"]): str(row["name"]) for row in _rows(answer, "volume_types")
            },
        )

    async def get_volume(self, volume_id: str) -> Volume:
        volume = await self._read(
            "block-storage",
            f"/volumes/{volume_id}",
            lambda answer: _whole_volume(answer["volume"]),
            certain=volume_id,
        )
        # The role admin sees the volumes of all projects here
        return replace(volume, foreign=volume.project_id != await self._own_project())

    async def find_volumes(self, name: str) -> tuple[Volume, ...]:
        found = [volume async for volume in self._volumes({"name": name}, _whole_volume)]
        return tuple(sorted(found, key=lambda volume: (volume.created_at, volume.id)))

    def list_volumes(self, tag: str = "") -> AsyncIterator[Volume]:
        # Cinder reads a literal of Python's here (cinder/api/v3/volumes.py)
        return self._volumes({"limit": str(PAGE)} | ({"metadata": str({TAG: tag})} if tag else {}))

    async def get_quota(self, volume_type: str) -> Quota:
        project_id = await self._own_project()
        path = f"/os-quota-sets/{project_id}?usage=True"
        return await self._read("block-storage", path, lambda answer: _quota(answer, volume_type))

    async def create_volume(self, new: NewVolume) -> Volume:
        body: dict[str, object] = {
            "name": new.name,
            "size": new.size,
            "metadata": dict(new.metadata),
        }
        more = {
            "volume_type": new.volume_type,
            "imageRef": new.image_id,
            "source_volid": new.source_volid,
            "availability_zone": new.availability_zone,
        }
        body |= {name: value for name, value in more.items() if value}
        answer = await self._write("block-storage", "POST", "/volumes", {"volume": body})
        return _parsed("block-storage", lambda made: _volume(made["volume"]), answer)

    async def delete_volume(self, volume_id: str) -> None:
        await self._write("block-storage", "DELETE", f"/volumes/{volume_id}")

    async def set_metadata(self, volume_id: str, metadata: Mapping[str, str]) -> None:
        url, body = f"/volumes/{volume_id}/metadata", {"metadata": dict(metadata)}
        answer = await self._write("block-storage", "POST", url, body)
        shown = answer.get("metadata") if isinstance(answer, dict) else None
        if not isinstance(shown, dict):
            return
        # Two writes at once can leave two rows of one key. From then on Cinder writes the first and
        # shows the other.
        if doubled := [name for name, value in metadata.items() if shown.get(name, value) != value]:
            log.info("metadata_doubled", volume_id=volume_id, names=doubled)
            for name in doubled:
                with contextlib.suppress(NotFound):
                    await self._write("block-storage", "DELETE", f"{url}/{name}")
            await self._write("block-storage", "POST", url, body)

    async def set_readonly(self, volume_id: str) -> None:
        body = {"os-update_readonly_flag": {"readonly": True}}
        await self._write("block-storage", "POST", f"/volumes/{volume_id}/action", body)

    async def login(self) -> Login:
        """Return the names of our user and project; for `doctor`, as are the following reads."""

        def ask() -> Login:
            session = self._connection.session
            access = cast("BaseIdentityPlugin", session.auth).get_access(session)
            return Login(
                user=access.username or "",
                project=access.project_name or "",
                project_domain=access.project_domain_name or "",
            )

        return await self._guarded("keystone", "POST", ask)

    async def clock(self, service: str) -> Clock:
        """How far the clock of `keystone`, `image` or `block-storage` is ahead of ours; Malformed
        if it won't say.

        Needs no rights there, as it asks for no more than the versions.
        """

        def ask() -> Clock:
            session = self._connection.session
            if service == "keystone":
                url = str(cast("Any", session.auth).auth_url)
            else:
                proxy = (
                    self._connection.image if service == "image" else self._connection.block_storage
                )
                url = f"{'{0.scheme}://{0.netloc}'.format(urlsplit(proxy.get_endpoint() or ''))}/"
            asked = time.time()
            response = session.get(
                url, authenticated=False, raise_exc=False, redirect=False, connect_retries=0
            )
            answered = time.time()
            try:
                second = parsedate_to_datetime(response.headers["Date"]).timestamp()
            except (KeyError, ValueError) as error:
                raise Malformed(f"{service}: an answer without a date") from error
            return Clock(least=second - answered, most=second + 1 - asked)

        return await self._guarded(service, "GET", ask)

    async def image_api_version(self) -> tuple[int, ...]:
        """The newest version of the image API, as (2, 17)."""
        return await self._read(
            "image",
            "/versions",
            lambda answer: max(_each("versions", _version)(answer), default=()),
        )

    async def volume_api_version(self) -> tuple[int, ...]:
        """The newest microversion of the block storage API, as (3, 71); empty if it tells none."""

        def ask() -> tuple[int, ...]:
            data = self._connection.block_storage.get_endpoint_data()
            return tuple(int(number) for number in (data and data.max_microversion) or ())

        return await self._guarded("block-storage", "GET", ask)

    async def newest_images(self, *, limit: int = 100, status: str = "") -> tuple[Shown, ...]:
        """Some images, the newest first, of whatever project; with `status` only those in it."""
        query = {"limit": limit, "visibility": "all"} | ({"status": status} if status else {})
        return await self._read(
            "image", f"/v2/images?{urlencode(query)}", _each("images", Shown.from_api)
        )

    async def read_locations(self, image_id: str) -> tuple[Location, ...]:
        """Where an image's data lies, by the New Location API alone; Blocked without the role
        service."""
        return await self._read("image", f"/v2/images/{image_id}/locations", _locations)

    async def describe_volume_types(self) -> tuple[VolumeType, ...]:
        return await self._read(
            "block-storage", "/types?is_public=None", _each("volume_types", VolumeType.from_api)
        )

    async def encrypts(self, type_id: str) -> bool:
        """Whether volumes of a type are encrypted; an administrator's call."""
        path = f"/types/{type_id}/encryption"
        return await self._read("block-storage", path, lambda answer: bool(answer.get("provider")))

    async def list_pools(self) -> tuple[Pool, ...]:
        path = "/scheduler-stats/get_pools?detail=true"
        pools: tuple[Pool, ...] = await self._read(
            "block-storage", path, _each("pools", Pool.from_api)
        )
        try:
            zones = await self._read("block-storage", "/os-services?binary=cinder-volume", _zones)
        except Blocked:
            return pools
        return tuple(replace(pool, zone=zones.get(pool.backend, "")) for pool in pools)

    async def create_private_type(self, name: str, specs: Mapping[str, str]) -> None:
        body = {
            "name": name,
            "description": (
                "Leads to one pool, for Image-Volumes there. Made and deleted by "
                "image-volume-worker."
            ),
            "os-volume-type-access:is_public": False,
            "extra_specs": dict(specs),
        }
        await self._write("block-storage", "POST", "/types", {"volume_type": body})

    async def delete_volume_type(self, type_id: str) -> None:
        await self._write("block-storage", "DELETE", f"/types/{type_id}")

    async def list_services(self) -> tuple[Service, ...]:
        """Cinder's services; an administrator's call."""
        return await self._read(
            "block-storage", "/os-services", _each("services", Service.from_api)
        )

    async def list_zones(self) -> frozenset[str]:
        """The availability zones for volumes that are available."""

        def available(answer: Any) -> frozenset[str]:
            rows = _rows(answer, "availabilityZoneInfo")
            return frozenset(str(row["zoneName"]) for row in rows if row["zoneState"]["available"])

        return await self._read("block-storage", "/os-availability-zone", available)

    async def limits(self) -> Mapping[str, Limit]:
        """The internal project's limits by name: `volumes`, `gigabytes_<type>` and so on."""
        project_id = await self._own_project()

        def limits(answer: Any) -> Mapping[str, Limit]:
            rows = answer["quota_set"].items()
            return {name: Limit.from_api(row) for name, row in rows if isinstance(row, dict)}

        return await self._read("block-storage", f"/os-quota-sets/{project_id}?usage=True", limits)

    async def _own_project(self) -> str:
        self._project_id = self._project_id or (await self.identity()).project_id
        return self._project_id

    def _images(self, query: Mapping[str, str], *, limit: int) -> AsyncIterator[Image]:
        url = f"/v2/images?{urlencode({**query, 'limit': limit})}"
        return self._pages("image", url, "images", _image, lambda page: page.get("next"))

    def _volumes(
        self, query: Mapping[str, str], parse: Callable[[Mapping[str, Any]], Volume] | None = None
    ) -> AsyncIterator[Volume]:
        """The volumes of our own project; even with the role admin Cinder lists no others unless
        asked to."""

        def following(page: Any) -> str | None:
            links = [
                link["href"] for link in page.get("volumes_links", ()) if link.get("rel") == "next"
            ]
            # Cinder's link may name an endpoint that only it knows (public_endpoint): keep ours,
            # take its query
            return (
                f"/volumes/detail?{urlencode(parse_qsl(urlsplit(links[0]).query))}"
                if links
                else None
            )

        return self._pages(
            "block-storage",
            f"/volumes/detail?{urlencode(query)}",
            "volumes",
            parse or _volume,
            following,
        )

    async def _pages(
        self,
        service: str,
        url: str,
        name: str,
        parse: Callable[[Any], T],
        following: Callable[[Any], str | None],
    ) -> AsyncIterator[T]:
        """The rows of a listing, page by page; `following` is where the next page is."""
        next_url: str | None = url
        seen = set[str]()
        while next_url:
            if next_url in seen or len(seen) == MOST_PAGES:
                raise Temporary(f"{service}: the pages of {name} go round in circles")
            seen.add(next_url)
            rows, next_url = await self._read(
                service, next_url, lambda page: (_each(name, parse)(page), _link(following(page)))
            )
            for row in rows:
                yield row

    async def _read(
        self, service: str, url: str, parse: Callable[[Any], T], *, certain: str = ""
    ) -> T:
        """Return the answer as `parse` reads it. One that makes no sense is asked for again, as if
        it was cut short."""

        async def ask() -> T:
            return _parsed(
                service, parse, await self._request(service, "GET", url, certain=certain)
            )

        return await self._retried(service, ask)

    async def _write(
        self,
        service: str,
        method: str,
        url: str,
        body: object = None,
        *,
        content_type: str = "application/json",
    ) -> Any:
        return await self._request(service, method, url, body=body, content_type=content_type)

    async def _retried(self, service: str, call: Callable[[], Awaitable[T]]) -> T:
        counted = self._metrics.api_retries
        async for attempt in reading(
            lambda reason: counted.labels(service, reason).inc(), sleep=self._sleep
        ):
            with attempt:
                return await call()
        raise AssertionError("tenacity raises the last error instead")

    async def _request(
        self,
        service: str,
        method: str,
        url: str,
        *,
        body: object = None,
        content_type: str = "application/json",
        certain: str = "",
    ) -> Any:
        """The answer's JSON. `certain` is text that a 404 must hold to be believed: a proxy has its
        own."""

        def ask() -> Any:
            proxy = self._connection.image if service == "image" else self._connection.block_storage
            # Given as None it would hide what clouds.yaml overrides
            where: dict[str, Any] = {}
            if service == "image":
                # The catalog's endpoint may or may not end in /v2; ours are absolute below it
                where["endpoint_override"] = (
                    (proxy.get_endpoint() or "").rstrip("/").removesuffix("/v2")
                )
            response = proxy.request(
                url,
                method,
                raise_exc=False,
                connect_retries=0,
                # keystoneauth's own makes each request wait until the clock has caught up, if it
                # was set back
                rate_semaphore=contextlib.nullcontext(),
                **where,
                headers={"Accept": "application/json"}
                | ({"Content-Type": content_type} if body is not None else {}),
                data=None if body is None else json.dumps(body),
            )
            return self._answer(service, method, response, certain)

        return await self._guarded(service, method, ask)

    async def _guarded(self, service: str, method: str, ask: Callable[[], T]) -> T:
        """Run a request on a thread; what libraries raise becomes one of our errors, here only.

        What is not known to be something else is Temporary: a file that is replaced just now, an
        answer that a library stumbles over, no thread to be had.
        """
        began = time.monotonic()
        context, deadline = contextvars.copy_context(), Deadline()
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, context.run, self._within, deadline, asyncio.get_running_loop(), ask
            )
        except OURS:
            raise
        except (ksa.Unauthorized, ksa.Forbidden) as error:
            raise Blocked(f"{service}: Keystone refuses our credentials: {_line(error)}") from error
        except (
            ksa.MissingRequiredOptions,
            ksa.NoMatchingPlugin,
            openstack.exceptions.ConfigException,
        ) as error:
            raise Blocked(f"{service}: credentials are incomplete: {_line(error)}") from error
        except Exception as error:
            self._metrics.api_requests.labels(service, method, "none").inc()
            if deadline.over:
                raise Temporary(f"{service}: no whole answer within {self._timeout:g} s") from error
            if isinstance(error, openstack.exceptions.NotSupported):
                # It looks for the service's versions first, and has found none
                raise Temporary(
                    f"{service}: no answer: its endpoint tells no API version, is it there?"
                ) from error
            if not isinstance(error, UNANSWERED) and self._strange != (strange := _line(error)):
                self._strange = strange
                log.warning(
                    "request_failed_strangely", service=service, error=strange, exc_info=error
                )
            raise Temporary(f"{service}: no answer: {_line(error)}") from error
        finally:
            self._metrics.api_seconds.labels(service, method).observe(time.monotonic() - began)

    def _within(
        self, deadline: Deadline, loop: asyncio.AbstractEventLoop, ask: Callable[[], T]
    ) -> T:
        """Call `ask` on this thread; cut its connections once it has taken `timeout` seconds."""
        with deadline:
            self._under_way.add(deadline)
            # Counted from now: it may have waited for its turn
            loop.call_soon_threadsafe(loop.call_later, self._timeout, deadline.cut)
            try:
                return ask()
            finally:
                self._under_way.discard(deadline)

    def _answer(self, service: str, method: str, response: requests.Response, certain: str) -> Any:
        status = response.status_code
        self._metrics.api_requests.labels(service, method, str(status)).inc()
        if status < 300:
            if not response.content:
                return None
            try:
                return response.json()
            except ValueError as error:
                # A proxy's page or a body cut short; asking again is all that can help
                raise Temporary(
                    f"{service}: an answer that is no JSON: {response.text[:100]!r}"
                ) from error
        text = f"{service}: {method} {urlsplit(response.url).path}: {status} {_message(response)}"
        match status:
            case 404 if certain and certain not in response.text:
                raise Temporary(f"{text} (not the service's own 404)")
            case 404:
                raise NotFound(text)
            case 400 | 409:
                raise Conflict(text)
            case 401 | 403 | 413:
                raise Blocked(text)
            case 429:
                raise Temporary(text, after=_retry_after(response))
            case _ if status >= 500:
                raise Temporary(text, after=_retry_after(response))
            case _:
                raise Blocked(text)


def _line(error: BaseException) -> str:
    """The innermost reason in one line: what wraps it says the same again, with URLs and object
    ids."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200].removesuffix(": ")


def _message(response: requests.Response) -> str:
    """Return the service's own message, from Cinder's JSON or Glance's page."""
    try:
        body = response.json()
        inner = next(iter(body.values())) if isinstance(body, dict) and body else body
        text = str(inner.get("message", inner)) if isinstance(inner, dict) else str(inner)
    except ValueError:
        text = response.text.split("</h1>")[-1]
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())[:300]


def _retry_after(response: requests.Response) -> float | None:
    """Seconds that the service asks us to wait, if it says so in seconds; never longer than a sane
    one would."""
    try:
        return min(max(0.0, float(response.headers.get("Retry-After", ""))), LONGEST_WAIT)
    except ValueError:
        return None


def _zones(answer: Any) -> dict[str, str]:
    """The availability zones of the backends, by host@backend."""
    return {str(row["host"]): str(row.get("zone") or "") for row in _rows(answer, "services")}


def _rows(page: Any, name: str) -> list[Any]:
    rows = page.get(name) if isinstance(page, dict) else None
    if not isinstance(rows, list):
        # An empty list would read as "nothing there", and things get deleted for not being there
        raise Temporary(f"an answer without {name}")
    return rows


def _parsed(service: str, parse: Callable[[Any], T], answer: Any) -> T:
    try:
        return parse(answer)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        # Most likely it is not the service's own: a proxy's, or cut short where it is still JSON
        raise Temporary(f"{service}: an answer that makes no sense: {error!r}"[:300]) from error


def _each(name: str, parse: Callable[[Any], T]) -> Callable[[Any], tuple[T, ...]]:
    """Parses an answer that has its rows under `name`."""
    return lambda answer: tuple(parse(row) for row in _rows(answer, name))


def _link(url: object) -> str | None:
    if not isinstance(url, str | None):
        raise TypeError(f"no link: {url!r}")
    return url or None


def _text(fields: Mapping[str, Any], name: str) -> str:
    """Text that may be missing or null, not something else."""
    value = fields.get(name)
    if not isinstance(value, str | None):
        raise TypeError(f"{name} is no text: {value!r}")
    return value or ""


def _word(fields: Mapping[str, Any], name: str) -> str:
    """Text that must be there."""
    if not (value := _text(fields, name)):
        raise ValueError(f"no {name}")
    return value


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split(",")) - {""}


def _locations(rows: Any) -> tuple[Location, ...]:
    # No list would read as "no locations", and things are made and deleted for there being none
    if not isinstance(rows, list):
        raise TypeError(f"no list: {rows!r}")
    return tuple(_location(row) for row in rows)


def _shown_locations(image: Any) -> tuple[Location, ...]:
    """The locations in an image's own fields; none where Glance does not show them."""
    return _locations(image.get("locations") or []) if _word(image, "id") else ()


def _image(fields: Mapping[str, Any]) -> Image:
    updated_at = _text(fields, "updated_at")
    return Image(
        id=_word(fields, "id"),
        status=_word(fields, "status"),
        owner=_text(fields, "owner"),
        disk_format=_text(fields, "disk_format"),
        container_format=_text(fields, "container_format"),
        visibility=_text(fields, "visibility"),
        name=_text(fields, "name"),
        size=int(fields.get("size") or 0),
        virtual_size=int(fields.get("virtual_size") or 0),
        min_disk=int(fields.get("min_disk") or 0),
        created_epoch=_epoch(_text(fields, "created_at")),
        updated_at=updated_at,
        updated_epoch=_epoch(updated_at),
        stores=_names(_text(fields, "stores")) if "stores" in fields else None,
        importing=_names(_text(fields, "os_glance_importing_to_stores")),
        failed=_names(_text(fields, "os_glance_failed_import")),
        import_locked="os_glance_import_task" in fields,
        properties={
            key: value
            for key, value in fields.items()
            if isinstance(value, str) and key not in BASE
        },
    )


def _location(fields: Mapping[str, Any]) -> Location:
    location = Location.from_url(_word(fields, "url"))
    store = location.store or str((fields.get("metadata") or {}).get("store", ""))
    return replace(location, store=store)


def _store(fields: Mapping[str, Any]) -> Store:
    properties = fields.get("properties") or {}
    return Store(
        id=_word(fields, "id"),
        type=_text(fields, "type"),
        volume_type=_text(properties, "volume_type"),
    )


def _task(fields: Mapping[str, Any]) -> ImageTask:
    given = fields.get("input") or {}
    return ImageTask(
        id=_word(fields, "id"),
        type=_word(fields, "type"),
        status=_word(fields, "status"),
        message=_text(fields, "message"),
        url=_text(given, "loc_url") if isinstance(given, dict) else "",
    )


def _change(name: str, value: str) -> dict[str, str]:
    """An operation of JSON Patch that sets a property, or takes it away."""
    path = "/" + name.replace("~", "~0").replace("/", "~1")
    return {"op": "add", "path": path, "value": value} if value else {"op": "remove", "path": path}


def _quota(answer: Mapping[str, Any], volume_type: str) -> Quota:
    quotas = answer["quota_set"]

    def left(name: str) -> int | None:
        # A type has limits of its own besides those of the project; -1 is none
        given = [quotas[one] for one in (name, f"{name}_{volume_type}") if one in quotas]
        limited = [row for row in given if int(row["limit"]) >= 0]
        return min(
            (int(row["limit"]) - int(row["in_use"]) - int(row["reserved"]) for row in limited),
            default=None,
        )

    return Quota(volumes=left("volumes"), gigabytes=left("gigabytes"))


def _version(fields: Mapping[str, Any]) -> tuple[int, ...]:
    """(2, 17) of an entry `v2.17`; empty if it is none."""
    numbers = str(fields.get("id", "")).removeprefix("v").split(".")
    return (
        tuple(int(number) for number in numbers)
        if all(number.isdecimal() for number in numbers)
        else ()
    )


def _volume(fields: Mapping[str, Any]) -> Volume:
    metadata = fields.get("metadata") or {}
    return Volume(
        id=_word(fields, "id"),
        name=_text(fields, "name"),
        status=_word(fields, "status"),
        volume_type=_text(fields, "volume_type"),
        size=int(fields["size"]),
        created_at=_text(fields, "created_at"),
        created_epoch=_epoch(_text(fields, "created_at")),
        updated_epoch=_epoch(_text(fields, "updated_at")),
        host=_text(fields, "os-vol-host-attr:host"),
        project_id=_text(fields, "os-vol-tenant-attr:tenant_id"),
        source_volid=_text(fields, "source_volid"),
        snapshot_id=_text(fields, "snapshot_id"),
        # Who may not see it is told nothing; null is no place
        scheduled=fields.get("os-vol-host-attr:host", "") is not None,
        encrypted=bool(fields.get("encrypted")),
        # Written when the image's data has come (_create_from_image_cache_or_download), not when it
        # was cloned
        downloaded="signature_verified" in (fields.get("volume_image_metadata") or {}),
        metadata={name: _text(metadata, name) for name in metadata},
    )


def _whole_volume(fields: Mapping[str, Any]) -> Volume:
    """A volume with what Cinder keeps of its image, which only some readers need and which may be
    large."""
    kept = fields.get("volume_image_metadata") or {}
    return replace(_volume(fields), image_properties={name: _text(kept, name) for name in kept})


def _epoch(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return 0.0
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
