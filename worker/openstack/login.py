"""The login: finds the credentials and makes a connection, which asks nothing yet."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping, MutableMapping
from typing import cast
from urllib.parse import urlsplit

import keystoneauth1.exceptions as ksa
import openstack.config
import openstack.exceptions
import requests
from openstack.config.loader import CONFIG_FILES
from openstack.connection import Connection

from worker.core import request_id
from worker.core.errors import Misconfigured
from worker.core.release import release
from worker.observe.metrics import Metrics
from worker.openstack.answers import one_line
from worker.openstack.deadline import Adapter

# After all places where openstacksdk looks by itself
OWN_CLOUDS = "/etc/image-volume-worker/clouds.yaml"
KEYSTONES = re.compile(r"(?:/\w+)*/v3/(?:auth|projects)\b")
"""Paths that only Keystone has."""


REQUEST_ID = "X-OpenStack-Request-ID"


class _RequestId(Mapping[str, str]):
    """The header that tells a service the request id of what is being done at that moment."""

    def __getitem__(self, name: str) -> str:
        if name != REQUEST_ID:
            raise KeyError(name)
        return request_id.current()

    def __iter__(self) -> Iterator[str]:
        return iter((REQUEST_ID,))

    def __len__(self) -> int:
        return 1


def connect(*, name: str | None, timeout: float, concurrency: int) -> Connection:
    """Return a connection that has not asked anything yet. `name` is an entry of clouds.yaml; else
    OS_CLOUD, else OS_*.

    Raises Misconfigured if there are no credentials. `timeout` in seconds, for each request.
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
            f"[cloud]: no usable credentials: {error} ({looked} for clouds.yaml)"
        ) from error
    except Exception as error:
        # A clouds.yaml of another shape, or one that is not YAML, makes openstacksdk fail in many
        # ways
        raise Misconfigured(
            f"[cloud]: clouds.yaml or OS_* variables make no sense: {one_line(error)}"
        ) from error
    if not session.auth or not hasattr(session.auth, "get_access"):
        raise Misconfigured(
            "[cloud]: no credentials: set name, OS_CLOUD or OS_* (password or application "
            "credential)"
        )
    # keystoneauth's own requests for tokens and versions get it too
    session.additional_headers = cast("MutableMapping[str, str]", _RequestId())
    # requests keeps 10 connections a host otherwise, and opens and closes the rest for every
    # request
    pool = Adapter(pool_connections=8, pool_maxsize=concurrency)
    session.session.mount("http://", pool)
    session.session.mount("https://", pool)
    return connection


def count_keystone(connection: Connection, metrics: Metrics) -> None:
    """Count Keystone's answers; the session counts those of the other services.

    keystoneauth fetches a token whenever it needs one, during any request.
    """

    def heard(response: requests.Response, *_: object, **__: object) -> None:
        if KEYSTONES.match(urlsplit(response.url).path):
            metrics.api_requests.labels(
                "keystone", response.request.method or "", str(response.status_code)
            ).inc()

    connection.session.session.hooks["response"].append(heard)
