#!/usr/bin/env python3
"""Prints the policy of config/policy for one release of Glance or Cinder, from that release's own
defaults.

usage: PYTHON scripts/policy.py glance|cinder >config/policy/glance.yaml

PYTHON is one that has the service installed, as on the host where it runs. docs/permissions.md
tells what for.

The role becomes an administrator to the service (`context_is_admin`), for nothing less shows it
what belongs to others. Then every rule that rests on that is given back to the role admin, except
those that the worker needs.
"""

import sys
from collections.abc import Iterable, Iterator

ROLE = "role:image_volume_worker"

# Rules of Glance that the role keeps: why. Their defaults rest on context_is_admin, so there is
# nothing to write.
GLANCE_NEEDS = {
    "get_image": "all that it does begins with a look at the image",
    "get_images": "the comparison (resync) lists the images of all projects",
    "download_image": (
        "Cinder reads the image with the worker's token (strategies cache and location)"
    ),
    "copy_image": "strategy store",
    "get_image_location, set_image_location": (
        "strategy location, and uploads with the old location API"
    ),
    "delete_image_location": (
        "takes away a location whose volume is gone; Glance never lets the last one go"
    ),
    "stores_info_detail": "which store has which volume type",
}
GLANCE_SPECIAL = {
    "modify_image": (
        (
            "uploads: sets image_volume_status. Not while somebody uploads, or it could finish an "
            "import of its own"
        ),
        f"{{default}} or ({ROLE} and not 'uploading':%(status)s)",
    ),
}
# Rules of Cinder, with the service's default as {default}: why
CINDER = {
    "volume:get": (
        "What it needs: to look at a volume of any project, and to clone it into its own (uploads)",
        f"{{default}} or {ROLE}",
    ),
    "volume_extension:volume_tenant_attribute": ("whose it is", f"{{default}} or {ROLE}"),
    "volume_extension:volume_host_attribute": (
        "on which backend it lies",
        f"{{default}} or {ROLE}",
    ),
    "volume:update_volume_admin_metadata": (
        (
            "for os-update_readonly_flag, which has a rule of its own; Cinder asks this one in its "
            "own name"
        ),
        "role:admin",
    ),
    "volume_extension:volume_actions:upload_image": (
        "What it must not: Cinder does not ask whose volume this is",
        f"{{default}} and not {ROLE}",
    ),
}
# What the other rules of Cinder rest on
CINDER_BASE = {
    "admin_api": f"role:admin and not {ROLE}",
    "admin_or_owner": f"(role:admin and not {ROLE}) or project_id:%(project_id)s",
    "xena_system_admin_or_project_reader": "{without}",
    "xena_system_admin_or_project_member": "{without}",
}


def head(service: str) -> Iterator[str]:
    """What stands first in both files."""
    yield (
        f"# {service.capitalize()} for a login without the role admin: docs/permissions.md. "
        f"Made by scripts/policy.py"
    )
    yield "# Needs [oslo_policy] enforce_new_defaults = true, the default since OpenStack 2024.2."
    yield ""
    yield "# To see what belongs to others; all other rules here take back what comes with it."
    yield rule("context_is_admin", f"role:admin or {ROLE}")


def rule(name: str, check: str) -> str:
    """One line of a policy file."""
    return f'"{name}": "{check}"'


def glance(defaults: dict[str, str]) -> Iterator[str]:
    """Glance's: each rule whose default rests on context_is_admin, unless the worker needs it."""
    yield from head("glance")
    yield ""
    yield "# What it needs, and has by that without a line here:"
    for names, why in GLANCE_NEEDS.items():
        yield f"#   {names}: {why}"
    for name, (why, check) in GLANCE_SPECIAL.items():
        yield f"# {why}"
        yield rule(name, check.format(default=without_admin(defaults[name])))
    yield ""
    yield (
        "# The other rules are as before, for others. The worker can make an image its "
        "project's by modify_image, and"
    )
    yield "# shall not get the rights of an owner by that: hence the `not`."
    needed = {
        "context_is_admin",
        *GLANCE_SPECIAL,
        *(name for names in GLANCE_NEEDS for name in names.split(", ")),
    }
    for name, check in defaults.items():
        if "rule:context_is_admin" in check and name not in needed:
            yield rule(name, without_admin(check))


def without_admin(check: str) -> str:
    """The same for the role admin, and for owners other than the worker."""
    check = check.replace("rule:context_is_admin", "role:admin")
    return check.replace("role:member", f"role:member and not {ROLE}").replace(
        "role:reader", f"role:reader and not {ROLE}"
    )


def cinder(defaults: dict[str, str]) -> Iterator[str]:
    """Cinder's: all rules for administrators rest on few others."""
    yield from head("cinder")
    # The last one is only part of deprecated rules
    known = {"context_is_admin", *CINDER_BASE, "system_or_domain_or_project_admin"}
    more = [
        name for name, check in defaults.items() if ("is_admin:" in check or "role:admin" in check)
    ]
    if unknown := sorted(set(more) - known):
        sys.exit(f"this Cinder has more rules for administrators: {', '.join(unknown)}")
    yield ""
    yield (
        "# To Cinder an administrator has the role admin, once a request has sent a "
        "notification: hence the `not`."
    )
    for name, check in CINDER_BASE.items():
        without = defaults[name].replace("role:admin", f"role:admin and not {ROLE}")
        yield rule(name, check.format(without=without) if "{" in check else check)
    for name, (why, check) in CINDER.items():
        yield ""
        yield f"# {why}"
        yield rule(name, check.format(default=defaults[name]))


def main(words: Iterable[str]) -> None:
    """Print one service's file."""
    match tuple(words):
        case ("glance",):
            from glance import policies

            make = glance
        case ("cinder",):
            from cinder import policies

            make = cinder
        case _:
            sys.exit(__doc__)
    # A rule's deprecated form counts only where enforce_new_defaults is off
    defaults = {default.name: default.check_str for default in policies.list_rules()}
    print("\n".join(make(defaults)))


if __name__ == "__main__":
    main(sys.argv[1:])
