"""The cloud by openstacksdk: the only module that imports it. Requests in, values and our own errors out."""

from __future__ import annotations

import asyncio
import contextvars
import json
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
import requests.adapters
from keystoneauth1.identity.base import BaseIdentityPlugin
from openstack.connection import Connection

from worker.cloud import LISTED, Image, ImageTask, Location, NewVolume, Quota, Store, Volume
from worker.errors import Blocked, Conflict, Malformed, Misconfigured, NotFound, Temporary
from worker.metrics import Metrics, release
from worker.retry import reading
from worker.survey import Clock, Limit, Login, Pool, Service, Shown, VolumeType
from worker.target import TAG

PAGE = 1000
# Glance's version that has POST /v2/images/{id}/locations
LOCATION_API = (2, 17)
KEYSTONES = re.compile(r"(?:/\w+)*/v3/(?:auth|projects)\b")
"""Paths of Keystone's, of which no other service has any."""
PATCH_TYPE = "application/openstack-images-v2.1-json-patch"
# Fields of every image that are no properties of its own; a hash and two links a listed image would be a third of it
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
T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who we are to the cloud: the internal project, and the roles that our token carries."""

    project_id: str
    roles: frozenset[str]


def connect(*, name: str | None, timeout: float, concurrency: int) -> Connection:
    """A connection that has not asked anything yet. `name` is an entry of clouds.yaml; else OS_CLOUD, else OS_*.

    Raises Misconfigured if there are no credentials to be found. `timeout` in seconds, for each request.
    """
    try:
        region = openstack.config.OpenStackConfig(app_name="image-volume-worker", app_version=release()).get_one(
            cloud=name or None, api_timeout=timeout
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            session = region.get_session()
            connection = Connection(config=region)
    except (openstack.exceptions.SDKException, ksa.ClientException) as error:
        looked = "looked in OS_CLIENT_CONFIG_FILE, ., ~/.config/openstack and /etc/openstack for clouds.yaml"
        raise Misconfigured([f"[cloud]: no usable credentials: {error} ({looked})"]) from error
    if not session.auth or not hasattr(session.auth, "get_access"):
        raise Misconfigured(
            ["[cloud]: no credentials: set name, OS_CLOUD or OS_* (password or application credential)"]
        )
    # requests keeps 10 connections a host otherwise, and opens and closes the rest for every request
    pool = requests.adapters.HTTPAdapter(pool_connections=8, pool_maxsize=concurrency)
    session.session.mount("http://", pool)
    session.session.mount("https://", pool)
    return connection


def count_keystone(connection: Connection, metrics: Metrics) -> None:
    """Have Keystone's answers counted; those of the other services are where they are read.

    keystoneauth fetches a token whenever it needs one, under whatever is being asked then.
    """

    def heard(response: requests.Response, *_: object, **__: object) -> None:
        if KEYSTONES.match(urlsplit(response.url).path):
            metrics.api_requests.labels("keystone", response.request.method or "", str(response.status_code)).inc()

    connection.session.session.hooks["response"].append(heard)


class OpenStackCloud:
    """`worker.cloud.Cloud` on a real one. Threads carry the requests, `concurrency` of them at once.

    `admin_role` is the role that makes Glance and Cinder show what belongs to others.
    """

    def __init__(
        self,
        *,
        connection: Connection,
        metrics: Metrics,
        concurrency: int = 16,
        admin_role: str = "admin",
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._connection = connection
        self._metrics = metrics
        self._admin_role = admin_role
        self._threads = ThreadPoolExecutor(max_workers=concurrency, thread_name_prefix="api")
        self._project_id = ""
        self._sleep = sleep

    def close(self) -> None:
        """Let go of threads and connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._connection.session.session.close()

    async def identity(self) -> Identity:
        """Our project and roles, by a token that is fetched if there is none."""

        def ask() -> Identity:
            session = self._connection.session
            # connect() has made sure that it is a plugin of Keystone's
            access = cast("BaseIdentityPlugin", session.auth).get_access(session)
            return Identity(project_id=access.project_id or "", roles=frozenset(access.role_names or ()))

        return await self._retried("keystone", lambda: self._guarded("keystone", "POST", ask))

    async def find_project(self, name: str) -> str:
        """The id of the project that has this name or id; NotFound if there is none, Blocked if we may not look."""

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
                raise Blocked(f"keystone: several projects are named {name}: give the id") from error

        return await self._retried("keystone", lambda: self._guarded("keystone", "GET", ask))

    async def get_image(self, image_id: str) -> Image:
        answer = await self._read("image", f"/v2/images/{image_id}", certain=image_id)
        return _parsed(_image, answer)

    async def list_images(self) -> AsyncIterator[Image]:
        query = {"limit": PAGE, "status": f"in:{','.join(LISTED)}", "visibility": "all"}
        url: str | None = f"/v2/images?{urlencode(query)}"
        while url:
            page = await self._read("image", url)
            for fields in _rows(page, "images"):
                yield _parsed(_image, fields)
            url = page.get("next")

    async def get_locations(self, image_id: str) -> tuple[Location, ...]:
        try:
            answer = await self._read("image", f"/v2/images/{image_id}/locations")
            rows = answer if isinstance(answer, list) else []
        except (NotFound, Blocked):
            # Glance before 2.17, or we lack the role service: the image itself shows them if the operator lets it
            image = await self._read("image", f"/v2/images/{image_id}", certain=image_id)
            rows = image.get("locations") or []
        return tuple(_parsed(_location, row) for row in rows)

    async def copy_image(self, image_id: str, stores: Iterable[str]) -> None:
        body = {"method": {"name": "copy-image"}, "stores": list(stores), "all_stores_must_succeed": False}
        await self._write("image", "POST", f"/v2/images/{image_id}/import", body)

    async def add_location(self, image_id: str, url: str) -> None:
        patch = [{"op": "add", "path": "/locations/-", "value": {"url": url, "metadata": {}}}]
        await self._write("image", "PATCH", f"/v2/images/{image_id}", patch, content_type=PATCH_TYPE)

    async def import_location(self, image_id: str, url: str) -> None:
        await self._write("image", "POST", f"/v2/images/{image_id}/locations", {"url": url, "validation_data": {}})

    async def imports_locations(self) -> bool:
        answer = await self._read("image", "/versions")
        return any(_version(row) >= LOCATION_API for row in _rows(answer, "versions"))

    async def list_tasks(self, image_id: str) -> tuple[ImageTask, ...]:
        answer = await self._read("image", f"/v2/images/{image_id}/tasks")
        rows = sorted(_rows(answer, "tasks"), key=lambda row: str(row.get("created_at")), reverse=True)
        return tuple(_parsed(_task, row) for row in rows)

    async def list_members(self, image_id: str) -> Mapping[str, str]:
        answer = await self._read("image", f"/v2/images/{image_id}/members")
        return {str(row["member_id"]): str(row["status"]) for row in _rows(answer, "members")}

    async def set_property(self, image_id: str, name: str, value: str) -> None:
        path = "/" + name.replace("~", "~0").replace("/", "~1")
        patch = [{"op": "add", "path": path, "value": value}] if value else [{"op": "remove", "path": path}]
        await self._write("image", "PATCH", f"/v2/images/{image_id}", patch, content_type=PATCH_TYPE)

    async def remove_from_store(self, image_id: str, store: str) -> None:
        await self._write("image", "DELETE", f"/v2/stores/{store}/{image_id}")

    async def sees_all_images(self) -> bool:
        return self._admin_role in (await self.identity()).roles

    async def list_stores(self) -> tuple[Store, ...]:
        # Since Glance 2.15, for the role admin; before that there is a list of names only
        try:
            answer = await self._read("image", "/v2/info/stores/detail")
        except NotFound:
            try:
                answer = await self._read("image", "/v2/info/stores")
            except NotFound:
                return ()
        return tuple(_parsed(_store, row) for row in _rows(answer, "stores"))

    async def import_methods(self) -> frozenset[str]:
        """The image import methods that Glance offers."""
        answer = await self._read("image", "/v2/info/import")
        methods = answer.get("import-methods", {}) if isinstance(answer, dict) else {}
        return frozenset(methods.get("value", ()))

    async def list_volume_types(self) -> Mapping[str, str]:
        """Names of the volume types by id."""
        answer = await self._read("block-storage", "/types?is_public=None")
        return {str(row["id"]): str(row["name"]) for row in _rows(answer, "volume_types")}

    async def get_volume(self, volume_id: str) -> Volume:
        answer = await self._read("block-storage", f"/volumes/{volume_id}")
        volume = _parsed(_volume, answer["volume"])
        # The role admin sees the volumes of all projects here
        self._project_id = self._project_id or (await self.identity()).project_id
        return replace(volume, foreign=volume.project_id != self._project_id)

    async def find_volumes(self, name: str) -> tuple[Volume, ...]:
        found = [volume async for volume in self._volumes({"name": name})]
        return tuple(sorted(found, key=lambda volume: (volume.created_at, volume.id)))

    def list_volumes(self, tag: str = "") -> AsyncIterator[Volume]:
        # Cinder reads a literal of Python's here (cinder/api/v3/volumes.py)
        return self._volumes({"limit": str(PAGE)} | ({"metadata": str({TAG: tag})} if tag else {}))

    async def get_quota(self, volume_type: str) -> Quota:
        project_id = self._project_id = self._project_id or (await self.identity()).project_id
        answer = await self._read("block-storage", f"/os-quota-sets/{project_id}?usage=True")
        return _parsed(lambda fields: _quota(fields, volume_type), answer)

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
        return _parsed(_volume, answer["volume"])

    async def delete_volume(self, volume_id: str) -> None:
        await self._write("block-storage", "DELETE", f"/volumes/{volume_id}")

    async def set_metadata(self, volume_id: str, metadata: Mapping[str, str]) -> None:
        await self._write("block-storage", "POST", f"/volumes/{volume_id}/metadata", {"metadata": dict(metadata)})

    async def set_readonly(self, volume_id: str) -> None:
        body = {"os-update_readonly_flag": {"readonly": True}}
        await self._write("block-storage", "POST", f"/volumes/{volume_id}/action", body)

    async def login(self) -> Login:
        """What our user and project are called; for `doctor`, as are the following reads."""

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
        """How far the clock of `keystone`, `image` or `block-storage` is ahead of ours; Malformed if it won't say.

        Needs no rights there, as it asks for no more than the versions.
        """

        def ask() -> Clock:
            session = self._connection.session
            if service == "keystone":
                url = str(cast("Any", session.auth).auth_url)
            else:
                proxy = self._connection.image if service == "image" else self._connection.block_storage
                url = f"{'{0.scheme}://{0.netloc}'.format(urlsplit(proxy.get_endpoint() or ''))}/"
            asked = time.time()
            response = session.get(url, authenticated=False, raise_exc=False, redirect=False, connect_retries=0)
            answered = time.time()
            try:
                second = parsedate_to_datetime(response.headers["Date"]).timestamp()
            except (KeyError, ValueError) as error:
                raise Malformed(f"{service}: an answer without a date") from error
            return Clock(least=second - answered, most=second + 1 - asked)

        return await self._guarded(service, "GET", ask)

    async def image_api_version(self) -> tuple[int, ...]:
        """The newest version of the image API, as (2, 17)."""
        answer = await self._read("image", "/versions")
        return max((_version(row) for row in _rows(answer, "versions")), default=())

    async def volume_api_version(self) -> tuple[int, ...]:
        """The newest microversion of the block storage API, as (3, 71); empty if it tells none."""

        def ask() -> tuple[int, ...]:
            data = self._connection.block_storage.get_endpoint_data()
            return tuple(int(number) for number in (data and data.max_microversion) or ())

        return await self._guarded("block-storage", "GET", ask)

    async def newest_images(self, *, limit: int = 100) -> tuple[Shown, ...]:
        """Some images, the newest first, of whatever project."""
        query = {"limit": limit, "visibility": "all"}
        answer = await self._read("image", f"/v2/images?{urlencode(query)}")
        return tuple(_parsed(Shown.from_api, row) for row in _rows(answer, "images"))

    async def read_locations(self, image_id: str) -> tuple[Location, ...]:
        """Where an image's data lies, by the New Location API alone; Blocked without the role service."""
        answer = await self._read("image", f"/v2/images/{image_id}/locations")
        return tuple(_parsed(_location, row) for row in (answer if isinstance(answer, list) else []))

    async def describe_volume_types(self) -> tuple[VolumeType, ...]:
        """The volume types, with as much of their extra specs as we may see."""
        answer = await self._read("block-storage", "/types?is_public=None")
        return tuple(_parsed(VolumeType.from_api, row) for row in _rows(answer, "volume_types"))

    async def encrypts(self, type_id: str) -> bool:
        """Whether volumes of a type are encrypted; an administrator's call."""
        answer = await self._read("block-storage", f"/types/{type_id}/encryption")
        return bool(isinstance(answer, dict) and answer.get("provider"))

    async def list_pools(self) -> tuple[Pool, ...]:
        """The pools that Cinder's scheduler knows; an administrator's call."""
        answer = await self._read("block-storage", "/scheduler-stats/get_pools?detail=true")
        return tuple(_parsed(Pool.from_api, row) for row in _rows(answer, "pools"))

    async def list_services(self) -> tuple[Service, ...]:
        """Cinder's services; an administrator's call."""
        answer = await self._read("block-storage", "/os-services")
        return tuple(_parsed(Service.from_api, row) for row in _rows(answer, "services"))

    async def list_zones(self) -> frozenset[str]:
        """The availability zones for volumes that are available."""
        answer = await self._read("block-storage", "/os-availability-zone")
        rows = _rows(answer, "availabilityZoneInfo")
        return frozenset(str(row["zoneName"]) for row in rows if row["zoneState"]["available"])

    async def limits(self) -> Mapping[str, Limit]:
        """The internal project's limits by name: `volumes`, `gigabytes_<type>` and so on."""
        project_id = self._project_id = self._project_id or (await self.identity()).project_id
        answer = await self._read("block-storage", f"/os-quota-sets/{project_id}?usage=True")

        def limits(fields: Mapping[str, Any]) -> Mapping[str, Limit]:
            rows = fields["quota_set"].items()
            return {name: Limit.from_api(row) for name, row in rows if isinstance(row, dict)}

        return _parsed(limits, answer)

    async def sees_volumes_of_all(self) -> bool:
        """Whether Cinder takes the question for the volumes of all projects."""
        await self._read("block-storage", "/volumes?all_tenants=1&limit=1")
        return True

    async def _volumes(self, query: Mapping[str, str]) -> AsyncIterator[Volume]:
        """The volumes of our own project; even with the role admin Cinder lists no others unless asked to."""
        url: str | None = f"/volumes/detail?{urlencode(query)}"
        while url:
            page = await self._read("block-storage", url)
            for fields in _rows(page, "volumes"):
                yield _parsed(_volume, fields)
            following = [link["href"] for link in page.get("volumes_links", ()) if link.get("rel") == "next"]
            # Cinder's link may name an endpoint that only it knows (public_endpoint): keep ours, take its query
            url = f"/volumes/detail?{urlencode(parse_qsl(urlsplit(following[0]).query))}" if following else None

    async def _read(self, service: str, url: str, *, certain: str = "") -> Any:
        return await self._retried(service, lambda: self._request(service, "GET", url, certain=certain))

    async def _write(
        self, service: str, method: str, url: str, body: object = None, *, content_type: str = "application/json"
    ) -> Any:
        return await self._request(service, method, url, body=body, content_type=content_type)

    async def _retried(self, service: str, call: Callable[[], Awaitable[T]]) -> T:
        counted = self._metrics.api_retries
        async for attempt in reading(lambda reason: counted.labels(service, reason).inc(), sleep=self._sleep):
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
        """The answer's JSON. `certain` is text that a 404 must hold to be believed: a proxy has its own."""

        def ask() -> Any:
            proxy = self._connection.image if service == "image" else self._connection.block_storage
            # Given as None it would hide what clouds.yaml overrides
            where: dict[str, Any] = {}
            if service == "image":
                # The catalog's endpoint may or may not end in /v2; ours are absolute below it
                where["endpoint_override"] = (proxy.get_endpoint() or "").rstrip("/").removesuffix("/v2")
            response = proxy.request(
                url,
                method,
                raise_exc=False,
                connect_retries=0,
                **where,
                headers={"Accept": "application/json"} | ({"Content-Type": content_type} if body is not None else {}),
                data=None if body is None else json.dumps(body),
            )
            return self._answer(service, method, response, certain)

        return await self._guarded(service, method, ask)

    async def _guarded(self, service: str, method: str, ask: Callable[[], T]) -> T:
        """Run a request on a thread; what keystoneauth and requests raise becomes one of our errors, here only."""
        began = time.monotonic()
        context = contextvars.copy_context()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, context.run, ask)
        except (ksa.Unauthorized, ksa.Forbidden) as error:
            raise Blocked(f"{service}: Keystone refuses our credentials: {_line(error)}") from error
        except (ksa.MissingRequiredOptions, ksa.NoMatchingPlugin, openstack.exceptions.ConfigException) as error:
            raise Blocked(f"{service}: credentials are incomplete: {_line(error)}") from error
        except openstack.exceptions.NotSupported as error:
            # It looks for the service's versions first, and has found none
            self._metrics.api_requests.labels(service, method, "none").inc()
            raise Temporary(f"{service}: no answer: its endpoint tells no API version, is it there?") from error
        except UNANSWERED as error:
            self._metrics.api_requests.labels(service, method, "none").inc()
            raise Temporary(f"{service}: no answer: {_line(error)}") from error
        finally:
            self._metrics.api_seconds.labels(service, method).observe(time.monotonic() - began)

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
                raise Temporary(f"{service}: an answer that is no JSON: {response.text[:100]!r}") from error
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
    """The innermost reason in one line: what wraps it says the same again, with URLs and object ids."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200].removesuffix(": ")


def _message(response: requests.Response) -> str:
    """What the service says, from Cinder's JSON or Glance's page."""
    try:
        body = response.json()
        inner = next(iter(body.values())) if isinstance(body, dict) and body else body
        text = str(inner.get("message", inner)) if isinstance(inner, dict) else str(inner)
    except ValueError:
        text = response.text.split("</h1>")[-1]
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())[:300]


def _retry_after(response: requests.Response) -> float | None:
    """Seconds that the service asks us to wait, if it says so in seconds."""
    try:
        return max(0.0, float(response.headers.get("Retry-After", "")))
    except ValueError:
        return None


def _rows(page: Any, name: str) -> list[Any]:
    rows = page.get(name) if isinstance(page, dict) else None
    if not isinstance(rows, list):
        # An empty list would read as "nothing there", and things get deleted for not being there
        raise Temporary(f"an answer without {name}")
    return rows


def _parsed(parse: Callable[[Any], T], fields: Any) -> T:
    try:
        return parse(fields)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Malformed(f"{parse.__name__.strip('_')}: {error!r}") from error


def _names(text: object) -> frozenset[str]:
    return frozenset(str(text or "").split(",")) - {""}


def _image(fields: Mapping[str, Any]) -> Image:
    updated_at = str(fields.get("updated_at") or "")
    return Image(
        id=fields["id"],
        status=fields["status"],
        owner=fields.get("owner") or "",
        disk_format=fields.get("disk_format") or "",
        container_format=fields.get("container_format") or "",
        visibility=fields.get("visibility") or "",
        name=str(fields.get("name") or ""),
        size=int(fields.get("size") or 0),
        virtual_size=int(fields.get("virtual_size") or 0),
        min_disk=int(fields.get("min_disk") or 0),
        created_epoch=_epoch(str(fields.get("created_at") or "")),
        updated_at=updated_at,
        updated_epoch=_epoch(updated_at),
        stores=_names(fields["stores"]) if "stores" in fields else None,
        importing=_names(fields.get("os_glance_importing_to_stores")),
        failed=_names(fields.get("os_glance_failed_import")),
        import_locked="os_glance_import_task" in fields,
        properties={key: value for key, value in fields.items() if isinstance(value, str) and key not in BASE},
    )


def _location(fields: Mapping[str, Any]) -> Location:
    location = Location.from_url(str(fields["url"]))
    store = location.store or str((fields.get("metadata") or {}).get("store", ""))
    return replace(location, store=store)


def _store(fields: Mapping[str, Any]) -> Store:
    properties = fields.get("properties") or {}
    return Store(
        id=fields["id"], type=str(fields.get("type") or ""), volume_type=str(properties.get("volume_type") or "")
    )


def _task(fields: Mapping[str, Any]) -> ImageTask:
    given = fields.get("input") or {}
    return ImageTask(
        id=fields["id"],
        type=fields["type"],
        status=fields["status"],
        message=str(fields.get("message") or ""),
        url=str(given.get("loc_url") or "") if isinstance(given, dict) else "",
    )


def _quota(answer: Mapping[str, Any], volume_type: str) -> Quota:
    quotas = answer["quota_set"]

    def left(name: str) -> int | None:
        # A type has limits of its own besides those of the project; -1 is none
        given = [quotas[one] for one in (name, f"{name}_{volume_type}") if one in quotas]
        limited = [row for row in given if int(row["limit"]) >= 0]
        return min((int(row["limit"]) - int(row["in_use"]) - int(row["reserved"]) for row in limited), default=None)

    return Quota(volumes=left("volumes"), gigabytes=left("gigabytes"))


def _version(fields: Mapping[str, Any]) -> tuple[int, ...]:
    """(2, 17) of an entry `v2.17`; empty if it is none."""
    numbers = str(fields.get("id", "")).removeprefix("v").split(".")
    return tuple(int(number) for number in numbers) if all(number.isdecimal() for number in numbers) else ()


def _volume(fields: Mapping[str, Any]) -> Volume:
    return Volume(
        id=fields["id"],
        name=fields.get("name") or "",
        status=fields["status"],
        volume_type=fields.get("volume_type") or "",
        size=int(fields["size"]),
        created_at=str(fields.get("created_at") or ""),
        created_epoch=_epoch(str(fields.get("created_at") or "")),
        updated_epoch=_epoch(str(fields.get("updated_at") or "")),
        host=fields.get("os-vol-host-attr:host") or "",
        project_id=fields.get("os-vol-tenant-attr:tenant_id") or "",
        source_volid=fields.get("source_volid") or "",
        encrypted=bool(fields.get("encrypted")),
        metadata=dict(fields.get("metadata") or {}),
    )


def _epoch(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return 0.0
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
