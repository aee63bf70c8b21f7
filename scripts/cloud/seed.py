"""Content of a devcloud; each stage can be run again and makes only what is missing.

usage: seed.py identity|volume-types|backends HOME

identity: roles, projects, users, grants, services, endpoints; writes HOME/ids
volume-types: one type tied to each backend
backends: nothing made; waits until the scheduler knows all pools of both backends
"""

import pathlib
import string
import sys
import time
from typing import cast

import openstack
from openstack.connection import Connection
from openstack.identity.v3._proxy import Proxy as Identity

BACKENDS = ("local-1", "local-2")
ROLES = ("admin", "manager", "member", "reader", "service", "image_volume_worker")
PROJECTS = ("service", "internal", "alice", "bob")
GRANTS = (  # user, project, roles
    ("cinder", "service", ("admin", "service")),
    ("glance", "service", ("admin", "service")),
    # Owns the Image-Volumes: Cinder's internal tenant, and the login of Glance's cinder stores.
    ("internal", "internal", ("member",)),
    ("alice", "alice", ("member",)),
    ("bob", "bob", ("member",)),
    # The worker: admin to see and clone what is others', service for the location API.
    ("operator", "internal", ("admin", "service")),
    ("operator", "service", ("admin", "service")),
    # A worker's login that lacks service.
    ("nosvc", "internal", ("admin",)),
    # The same as operator without admin, for LEAST_PRIVILEGE.
    ("worker", "internal", ("image_volume_worker", "service", "member")),
    ("admin", "internal", ("admin",)),
    ("admin", "service", ("admin",)),
)
SERVICES = (  # name, type, URL
    ("glance", "image", "http://127.0.0.1:9292"),
    ("cinder", "block-storage", "http://127.0.0.1:8776/v3"),
    ("cinderv3", "volumev3", "http://127.0.0.1:8776/v3"),
)


def seed_identity(cloud: Connection, home: pathlib.Path) -> None:
    idp = cast("Identity", cloud.identity)
    password = cloud.config.auth["password"]
    roles = {role.name: role for role in idp.roles()}
    projects = {project.name: project for project in idp.projects()}
    users = {user.name: user for user in idp.users()}
    services = {service.name: service for service in idp.services()}
    endpoints = {(endpoint.service_id, endpoint.interface) for endpoint in idp.endpoints()}

    for name in ROLES:
        if name not in roles:
            roles[name] = idp.create_role(name=name)
    for name in PROJECTS:
        if name not in projects:
            projects[name] = idp.create_project(name=name, domain_id="default")
    for user, project, granted in GRANTS:
        if user not in users:
            users[user] = idp.create_user(name=user, password=password, domain_id="default")
        for role in granted:
            idp.assign_project_role_to_user(projects[project], users[user], roles[role])
    for name, kind, url in SERVICES:
        if name not in services:
            services[name] = idp.create_service(name=name, type=kind)
        for interface in ("public", "internal", "admin"):
            if (services[name].id, interface) not in endpoints:
                idp.create_endpoint(
                    service_id=services[name].id,
                    url=url,
                    interface=interface,
                    region_id="RegionOne",
                )

    # Lines of cinder.conf.
    home.joinpath("ids").write_text(
        f"cinder_internal_tenant_project_id = {projects['internal'].id}\n"
        f"cinder_internal_tenant_user_id = {users['internal'].id}\n"
    )


def seed_volume_types(cloud: Connection) -> None:
    have = {kind.name for kind in cloud.block_storage.types()}
    for name in BACKENDS:
        if name not in have:
            cloud.block_storage.create_type(
                name=name, extra_specs={"volume_backend_name": name, "multiattach": "<is> True"}
            )


def pools(home: pathlib.Path) -> set[str]:
    """Return the names of all pools, as the driver makes them up."""
    switches = dict(line.split("=") for line in home.joinpath("switches").read_text().split())
    count = 1 if switches["CEPH"] != "0" else int(switches["POOLS"])
    return {
        f"{name}{letter}" for name in BACKENDS for letter in ("", *string.ascii_lowercase[1:count])
    }


def wait_for_backends(cloud: Connection, home: pathlib.Path, *, timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    wanted = pools(home)
    while not wanted <= {
        pool.name.partition("#")[2] for pool in cloud.block_storage.backend_pools()
    }:
        if time.monotonic() > deadline:
            sys.exit("the scheduler does not know all pools")
        time.sleep(0.3)


def main(stage: str, home: pathlib.Path) -> None:
    config = openstack.config.OpenStackConfig(
        config_files=[str(home / "clouds.yaml")], load_envvars=False
    )
    cloud = Connection(config=config.get_one("admin"))
    match stage:
        case "identity":
            seed_identity(cloud, home)
        case "volume-types":
            seed_volume_types(cloud)
        case "backends":
            wait_for_backends(cloud, home)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]))
