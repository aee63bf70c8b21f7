"""Kept properties: the properties that an image gets from the volume that it is made of. Pure.

The volume has them from its own image.

Cinder's own upload decides the same way (cinder/volume/api.py, _merge_volume_image_meta;
cinder/image/image_utils.py, filter_out_reserved_namespaces_metadata). But Cinder asks Glance as the
user, and we have rights that the user lacks. Users can write anything into a volume's image
metadata, so no field of Glance's own may come from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from worker.core.target import TAG

# Cinder's glance_core_properties: they describe the data of the earlier image
CORE = frozenset({
    "checksum", "container_format", "disk_format", "image_id", "image_name", "min_disk", "min_ram", "name", "size",
})  # fmt: skip
# Fields of the image that Glance reads or writes (glance/api/v2/images.py)
FIELDS = frozenset({
    "created_at", "deleted", "deleted_at", "direct_url", "file", "id", "location", "locations", "os_hash_algo",
    "os_hash_value", "os_hidden", "owner", "protected", "schema", "self", "status", "stores", "tags", "updated_at",
    "validation_data", "virtual_size", "visibility",
})  # fmt: skip
# Beginnings of names. Glance keeps the first for itself, Cinder leaves out the next two: a
# signature is of other data. The key of an encrypted image is of no use to one made of a plain
# volume, and Glance would delete it with the image. Our marks are a volume's
RESERVED = ("os_glance", "img_signature", "signature_verified", "cinder_encryption_key", TAG)


def missing(
    known: Mapping[str, str], present: Iterable[str], reserved: Iterable[str] = ()
) -> dict[str, str]:
    """Return the image properties that a volume knows and the image lacks, as far as they are kept.

    `present` are the image's own, which win. `reserved` are beginnings of names that are left out
    too.
    """
    left_out = (*RESERVED, *(name.lower() for name in reserved if name))
    # Glance's MySQL takes names that differ in case alone for the same one: Glance answers 500
    taken = {name.lower() for name in present} | CORE | FIELDS
    kept: dict[str, str] = {}
    for name, value in sorted(known.items()):
        plain = name.lower()
        if (
            name
            and value
            and _is_plain(name)
            and plain not in taken
            and not plain.startswith(left_out)
        ):
            taken.add(plain)
            kept[name] = value
    return kept


def _is_plain(name: str) -> bool:
    """Whether Glance reads the name as it is.

    Glance strips spaces, also from those of its own fields, and its MySQL takes an accented letter
    for the plain one.
    """
    return name.isascii() and name.isprintable() and name == name.strip()
