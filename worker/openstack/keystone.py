"""Keystone: who the login is, and what it may see."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from typing import Any, cast
from urllib.parse import urlsplit

import openstack.exceptions
from keystoneauth1.access import AccessInfo
from keystoneauth1.identity.base import BaseIdentityPlugin

from worker.core.errors import Blocked, Malformed, NotFound
from worker.openstack.answers import one_line
from worker.openstack.session import Session
from worker.openstack.survey import Clock, Identity, Login


class Keystone(Session):
    """The questions about the login, which carry a token that is fetched if there is none."""

    _project_id = ""

    async def identity(self) -> Identity:
        """Return our project and roles, by a token that is fetched if there is none."""

        def ask() -> Identity:
            access = self._access()
            return Identity(
                project_id=access.project_id or "", roles=frozenset(access.role_names or ())
            )

        return await self._retried("keystone", lambda: self._guarded("keystone", "POST", ask))

    async def find_project(self, name: str) -> str:
        """Return the id of the project with this name or id; NotFound if there is none, Blocked if
        we may not look."""

        def ask() -> str:
            try:
                # The type of the connection allows for Keystone v2, which has been gone for years
                identity: Any = self._connection.identity
                return str(identity.find_project(name, ignore_missing=False).id)
            except openstack.exceptions.ForbiddenException as error:
                raise Blocked(f"keystone: may not look for projects: {one_line(error)}") from error
            except openstack.exceptions.NotFoundException as error:
                raise NotFound(f"keystone: no project {name}") from error
            except openstack.exceptions.DuplicateResource as error:
                raise Blocked(
                    f"keystone: several projects are named {name}: give the id"
                ) from error

        return await self._retried("keystone", lambda: self._guarded("keystone", "GET", ask))

    async def login(self) -> Login:
        """Return the names of our user and project; for `doctor`, as are the following reads."""

        def ask() -> Login:
            access = self._access()
            return Login(
                user=access.username or "",
                project=access.project_name or "",
                project_domain=access.project_domain_name or "",
            )

        return await self._guarded("keystone", "POST", ask)

    async def clock(self, service: str) -> Clock:
        """Return how far the clock of `keystone`, `image` or `block-storage` is ahead of ours;
        Malformed if it won't say.

        Needs no rights there: it asks for the versions only.
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

    def _access(self) -> AccessInfo:
        session = self._connection.session
        # connect() has made sure that it is a plugin for Keystone
        return cast("BaseIdentityPlugin", session.auth).get_access(session)

    async def _own_project(self) -> str:
        self._project_id = self._project_id or (await self.identity()).project_id
        return self._project_id
