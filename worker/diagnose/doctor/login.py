"""Checks of the login: who it is, and whether it may do what the worker does. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from worker.diagnose.check import Check
from worker.diagnose.doctor.facts import SERVICES, Facts
from worker.diagnose.doctor.untold import Untold, untold
from worker.openstack.survey import LOCATION_API, Clock, Identity
from worker.settings import Settings

SERVICE = "service"
SKEW = 2.0
"""Seconds that clocks may be apart: times of images and volumes are compared, and an image settles
for as long."""


def checks(facts: Facts, settings: Settings) -> Iterator[Check]:
    """Login, roles, clocks."""
    identity = facts.identity
    if isinstance(identity, Untold):
        advice = (
            "check [cloud] name, the password in clouds.yaml, that Keystone answers at its auth_url"
        )
        yield untold("login", identity, advice, verdict="fail")
    else:
        yield login(identity, facts)
        yield from roles(identity, facts, settings)
    for name in SERVICES:
        yield clock(
            f"clock {name}", facts.clocks.get(name, Untold(reason="not looked at without a login"))
        )


def login(identity: Identity, facts: Facts) -> Check:
    """Who we are: the project owns the Image-Volumes."""
    if not identity.project_id:
        advice = (
            "set project_name in clouds.yaml to Cinder's internal tenant, instead of "
            "system_scope or domain_name"
        )
        return Check("login", "fail", "the login is not scoped to a project", advice)
    if isinstance(facts.login, Untold):
        return Check("login", "ok", f"project {identity.project_id} owns the Image-Volumes")
    named = facts.login
    return Check(
        "login",
        "ok",
        f"user {named.user}, project {named.project} of domain {named.project_domain} "
        f"({identity.project_id}) owns "
        "the Image-Volumes",
    )


def roles(identity: Identity, facts: Facts, settings: Settings) -> Iterator[Check]:
    """Check what the roles allow, as far as that can be tried without changing anything."""
    grant = f"openstack role add --user USER --project {identity.project_id}"
    has = ", ".join(sorted(identity.roles)) or "none"
    if settings.admin_role not in identity.roles:
        yield Check(
            "roles",
            "fail",
            f"lacks {settings.admin_role}, without which images of others are not seen; it has "
            f"{has}",
            f"{grant} {settings.admin_role}, or set [cloud] admin_role to the role of "
            f"docs/permissions.md",
        )
    else:
        yield Check("roles", "ok", has)
    yield _glance_rights(facts, identity)
    yield _private_images(facts, settings)
    yield _location_rights(facts, settings, grant, named=SERVICE in identity.roles)
    yield _cinder_rights(
        facts, f"{grant} {settings.admin_role}; else see volume:get_all in Cinder's policy"
    )


def _glance_rights(facts: Facts, identity: Identity) -> Check:
    name = "rights in glance"
    if isinstance(facts.stores, Untold) and facts.stores.refused:
        advice = (
            "allow stores_info_detail in Glance's policy to the role: it is that of "
            "context_is_admin"
        )
        return untold(name, facts.stores, advice, verdict="fail")
    if isinstance(facts.images, Untold):
        advice = (
            "allow get_images in Glance's policy to the role"
            if facts.images.refused
            else "see glance"
        )
        return untold(
            name, facts.images, advice, verdict="fail" if facts.images.refused else "warn"
        )
    others = sum(image.owner != identity.project_id for image in facts.images)
    seen = (
        f"{others} of the {len(facts.images)} newest images are of other projects"
        if facts.images
        else "no image"
    )
    return Check(name, "ok", f"lists images and stores; {seen}")


def _cinder_rights(facts: Facts, advice: str) -> Check:
    """Whether Cinder shows us volumes of other projects: it passes the question over for those that
    it does not let."""
    name, witness = "rights in cinder", facts.volume_witness
    if isinstance(witness, Untold):
        return untold(
            name,
            witness,
            advice if witness.refused else "see cinder",
            verdict="fail" if witness.refused else "warn",
        )
    if witness:
        return Check(name, "ok", f"sees volumes of other projects, as {witness}")
    text = (
        "Cinder shows no volume of another project: uploads find no source, and what is not "
        "found may be one"
    )
    return Check(name, "warn", text, f"if there are any: {advice}")


def _private_images(facts: Facts, settings: Settings) -> Check:
    """Whether Glance shows us private images of other projects: without one no 404 of an image
    proves anything."""
    name = "private images"
    if isinstance(facts.witness, Untold):
        return untold(name, facts.witness, "see glance")
    if facts.witness:
        return Check(
            name,
            "ok",
            f"sees those of other projects, as {facts.witness}: a 404 of an image can be believed",
        )
    if "reclaim" in settings.switched_off:
        return Check(name, "ok", "sees none of another project; nothing is reclaimed anyway")
    return Check(
        name,
        "warn",
        "sees none of another project: that an image is gone is only believed if Glance "
        "announces it",
        f"if there are such images, context_is_admin of Glance's policy does not have the role "
        f"{settings.admin_role}; "
        "else make one",
    )


def _location_rights(facts: Facts, settings: Settings, grant: str, *, named: bool) -> Check:
    """Whether we may read where images lie, which needs the role service by Glance's default
    policy."""
    name = "rights to locations"
    located = facts.located
    if isinstance(facts.image_api, Untold) or (isinstance(located, Untold) and not located.refused):
        return Check(name, "warn", "can't be tried while Glance does not answer", "see glance")
    if facts.image_api < LOCATION_API:
        return Check(
            name, "ok", "Glance has no New Location API, only what show_multiple_locations shows"
        )
    advice = (
        f"{grant} {SERVICE}, which fetch_image_location and add_image_location of Glance's "
        f"policy want"
    )
    if isinstance(located, Untold):
        return untold(name, located, advice, verdict="fail")
    if not named and "upload" not in settings.switched_off:
        # Glance asks for this very name when a location is added (glance/api/v2/images.py,
        # add_location)
        detail = "the login lacks the role service, without which no upload is completed"
        return Check(name, "fail", detail, advice)
    if located is None:
        if named:
            return Check(
                name, "ok", "the login has the role service; there is no image to try it on"
            )
        return Check(
            name,
            "warn",
            "there is no image to try it on, and the login lacks the role service",
            advice,
        )
    return Check(name, "ok", "reads locations of an image by the New Location API")


def clock(name: str, answer: Clock | Untold) -> Check:
    """Whether a service's clock agrees with ours."""
    if isinstance(answer, Untold):
        return untold(name, answer, "see login, glance, cinder")
    if abs(answer.skew) > SKEW:
        way = "ahead of" if answer.skew > 0 else "behind"
        return Check(
            name,
            "warn",
            f"{abs(answer.skew):.1f} s {way} ours",
            "run chrony or ntpd on both hosts: what is fresh and what is quiet is told by "
            "comparing times",
        )
    return Check(name, "ok", f"within {max(abs(answer.least), abs(answer.most)):.1f} s of ours")
