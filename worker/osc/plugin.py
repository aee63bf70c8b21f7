"""The plug-in as python-openstackclient wants it (osc_lib/clientmanager.py): a client by its API
name."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.openstack.cloud import OpenStackCloud

API_NAME = "image_volume"
API_VERSION_OPTION = "os_image_volume_api_version"
DEFAULT_API_VERSION = "1"
API_VERSIONS = {"1": "worker.osc.plugin"}
TIMEOUT = 60.0
"""Seconds for one request."""


def make_client(instance: Any) -> OpenStackCloud:
    """Return the cloud of the client's own session."""
    # `openstack --help` needs none of it
    import structlog  # noqa: PLC0415

    from worker.observe.metrics import Metrics  # noqa: PLC0415
    from worker.openstack.cloud import OpenStackCloud  # noqa: PLC0415

    # Our log lines become the client's own, which shows them with --debug
    structlog.configure(
        processors=[structlog.stdlib.add_log_level, structlog.stdlib.render_to_log_kwargs],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    return OpenStackCloud(
        connection=instance.sdk_connection,
        metrics=Metrics(),
        concurrency=4,
        timeout=TIMEOUT,
    )


def build_option_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Return the parser of the global options, to which nothing is added."""
    return parser
