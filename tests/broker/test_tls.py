"""TLS to the broker: a certificate that is trusted and names the host, or no connection."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.broker.hands import Hands, jobs, until
from tests.broker.intakes import oslo_intake
from tests.broker.rabbitmq import RabbitMQ, free_ports, installed
from tests.broker.sink import RecordingSink
from worker.broker.lanes import RabbitLanes


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that signs itself and names localhost; its key lies beside it."""
    folder = tmp_path_factory.mktemp("certificate")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext "
        "subjectAltName=DNS:localhost"
    )
    subprocess.run(
        [*command.split(), "-keyout", folder / "key.pem", "-out", folder / "certificate.pem"],
        check=True,
        capture_output=True,
    )
    return folder / "certificate.pem"


@pytest.fixture(scope="module")
def address(certificate: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A RabbitMQ that talks TLS: what comes after the scheme of its URL, with {host} for the name
    it is called by."""
    scripts = installed()
    if scripts is None:
        pytest.fail("no RabbitMQ on this machine: scripts/test installs it")
    (port,) = free_ports(1)
    broker = RabbitMQ(
        folder=tmp_path_factory.mktemp("rabbitmq-tls"),
        scripts=scripts,
        config=f"listeners.ssl.local = 127.0.0.1:{port}\n"
        f"ssl_options.certfile = {certificate}\n"
        f"ssl_options.keyfile = {certificate.with_name('key.pem')}\n",
    )
    try:
        broker.start()
        yield f"worker:{broker.password}@{{host}}:{port}/"
    finally:
        broker.remove()


async def test_lanes_over_tls(address: str, certificate: Path) -> None:
    hands = Hands()
    lanes = RabbitLanes(
        url=f"rabbit://{address.format(host='localhost')}?ssl=1&ssl_ca_file={certificate}",
        queue="tls",
    )
    await lanes.open({"lane": 500}, hands)
    await lanes.publish(jobs("lane", 500))
    assert await hands.have(500) == [str(number) for number in range(500)]
    hands.ack()
    # What OpenSSL has read ahead is not forgotten: the same once more, one by one
    for number in range(20):
        await lanes.publish(jobs("lane", 1, first=number))
        await hands.have(number + 1)
    await lanes.close()


async def test_the_oslo_driver_takes_tls_from_its_options(
    address: str, certificate: Path, tmp_path: Path
) -> None:
    file = tmp_path / "worker.conf"
    file.write_text(f"[oslo_messaging_rabbit]\nssl = true\nssl_ca_file = {certificate}\n")
    url = f"rabbit://{address.format(host='localhost')}"
    intake = oslo_intake(url=url, exchanges=["tls"], queue="tls", config_files=[str(file)])
    sink = RecordingSink()
    task = asyncio.create_task(intake.run(sink))
    await until(lambda: intake.problem() is None)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sink.gaps == ["connected"]


@pytest.mark.parametrize(
    ("host", "query"),
    [("localhost", "ssl=1"), ("127.0.0.1", "ssl=1&ssl_ca_file={certificate}")],
    ids=["of an unknown authority", "of another host"],
)
async def test_a_certificate_is_checked(
    address: str, certificate: Path, host: str, query: str
) -> None:
    lanes = RabbitLanes(
        url=f"rabbit://{address.format(host=host)}?{query.format(certificate=certificate)}",
        queue="tls",
    )
    await lanes.open({"lane": 1}, Hands())
    await until(lambda: "CERTIFICATE_VERIFY_FAILED" in (lanes.problem() or ""))
    await lanes.close()


async def test_the_name_in_a_certificate_may_be_passed_over(
    address: str, certificate: Path
) -> None:
    query = f"ssl=1&ssl_ca_file={certificate}&ssl_check_hostname=0"
    lanes = RabbitLanes(url=f"rabbit://{address.format(host='127.0.0.1')}?{query}", queue="tls")
    await lanes.open({"lane": 1}, Hands())
    await until(lambda: lanes.problem() is None)
    await lanes.close()
