"""Which properties of a volume's image an image made of the volume is given, as a table."""

from __future__ import annotations

import pytest

from handlers.upload import kept_properties


@pytest.mark.parametrize(
    ("known", "present", "expected"),
    [
        ({}, (), {}),
        (
            {"hw_firmware_type": "uefi", "os_type": "linux"},
            (),
            {"hw_firmware_type": "uefi", "os_type": "linux"},
        ),
        # The image's own win; MySQL takes these names for the same
        ({"os_type": "linux", "a": "b"}, ("os_type",), {"a": "b"}),
        ({"OS_type": "linux"}, ("os_type",), {}),
        ({"Colour": "green", "colour": "red"}, (), {"Colour": "green"}),
        # Glance would strip them, or its MySQL take them for others
        (
            {
                "os_type ": "linux",
                " visibility": "public",
                "\tx": "y",
                "öwner": "x",
                "😀": "x",
                "": "x",
            },
            (),
            {},
        ),
        ({"a/odd~name, with spaces": "kept"}, (), {"a/odd~name, with spaces": "kept"}),
        # An empty value would take the property away
        ({"a": ""}, (), {}),
        # The namespaces that the operator has reserved
        (
            {"licence_x": "paid", "licenced": "kept", "image_volume_prewarm": "yes"},
            (),
            {"licenced": "kept"},
        ),
    ],
)
def test_what_is_kept(
    known: dict[str, str], present: tuple[str, ...], expected: dict[str, str]
) -> None:
    assert (
        kept_properties.missing(known, present, ("licence_", "image_volume_prewarm", ""))
        == expected
    )


@pytest.mark.parametrize(
    "name",
    [
        # Cinder's own upload leaves these out
        "checksum", "container_format", "disk_format", "image_id", "image_name", "min_disk", "min_ram", "name", "size",
        "os_glance_import_task", "OS_Glance_import_task", "img_signature", "img_signature_certificate_uuid",
        "signature_verified",
        # With the rights of a user it could do nothing with these; we could
        "visibility", "owner", "protected", "os_hidden", "status", "id", "tags", "locations", "location",
        "virtual_size", "os_hash_algo", "os_hash_value", "stores", "Visibility",
        # The key of other data, which Glance would delete with the image
        "cinder_encryption_key_id", "cinder_encryption_key_deletion_policy",
    ],
)  # fmt: skip
def test_what_is_never_kept(name: str) -> None:
    assert kept_properties.missing({name: "x"}, ()) == {}
