"""The fixtures of the devcloud, and which tests its release can run."""

from __future__ import annotations

import pytest

from tests.devcloud import (  # noqa: F401  fixtures
    admin,
    alice,
    bob,
    cinder_uses_new_location_api,
    devcloud_up,
    has_new_location_api,
    hashed,
    hashing,
    images,
    operator,
    others,
    pytest_runtest_makereport,
    release,
    unhashed,
    worker,
)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what the devcloud's release can't do."""
    if item.get_closest_marker("needs_new_location_api") and not has_new_location_api():
        pytest.skip(f"Glance of {release()} has no New Location API")
    if (
        item.get_closest_marker("needs_cinder_with_new_location_api")
        and not cinder_uses_new_location_api()
    ):
        pytest.skip(f"Cinder of {release()} does not use the New Location API")
    if item.get_closest_marker("needs_optimized_upload") and release() < "2025.1":
        pytest.skip(f"Cinder of {release()} copies, whatever is configured")
