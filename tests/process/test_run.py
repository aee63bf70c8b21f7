"""`run` as a process, without a cloud and without a broker: signals, systemd, and what is broken
under it."""

from __future__ import annotations

import contextlib
import gzip
import os
import queue
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.deploy.debian import CLOUD, SmallCloud
from tests.worker_process import WorkerProcess, configuration, free_port

GROUPS = {
    "notifications": {"transport_urls": "rabbit://u:p@127.0.0.1:1/"},
    "cloud": {"name": "c"},
    "prewarm": {"targets": "fast"},
    "target:fast": {"volume_type": "ssd"},
    "log": {"format": "json"},
}


class Manager:
    """What systemd is told, as long as somebody listens."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._told: queue.SimpleQueue[str] = queue.SimpleQueue()
        # All the time, as systemd does: few messages wait in a socket, and more are dropped
        self._listening = threading.Thread(target=self._listen)
        self._listening.start()

    def _listen(self) -> None:
        while told := self._socket.recv(65536).decode():
            self._told.put(told)

    def until(self, word: str, *, without: str = "\0") -> str:
        """The next message that has this word in it, and not the other one; it is told something
        every second."""
        deadline = time.monotonic() + 120.0
        while (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                told = self._told.get(timeout=left)
                if word in told and without not in told:
                    return told
        raise TimeoutError(f"not told in time: {word}")

    def close(self) -> None:
        self._socket.sendto(b"", str(self.path))
        self._listening.join()
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    yield made
    made.close()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The file of certificates that the login names; nobody listens where it is for."""
    made = tmp_path / "ca.pem"
    made.touch()
    return made


@pytest.fixture
def worker(tmp_path: Path, bundle: Path, manager: Manager) -> Iterator[WorkerProcess]:
    clouds = tmp_path / "clouds.yaml"
    clouds.write_text(
        f"clouds: {{c: {{cacert: {bundle}, auth: {{auth_url: "
        f"'https://127.0.0.1:{free_port()}/v3', username: u,"
        " password: p, project_name: p, user_domain_name: d, project_domain_name: d}}}\n"
    )
    environment = {"NOTIFY_SOCKET": str(manager.path)}
    with WorkerProcess(tmp_path, GROUPS, clouds=clouds, environment=environment) as made:
        while made.probe("/healthz")[0] != 200:
            assert made.running, made.log.read_text()
            time.sleep(0.05)
        yield made


def test_a_reload_that_fails_is_told_and_the_next_one_is_heard(
    worker: WorkerProcess, manager: Manager, bundle: Path
) -> None:
    bundle.unlink()
    for _ in range(2):
        worker.signal(signal.SIGHUP)
        manager.until("RELOADING=1")
        assert "reload refused" in manager.until("READY=1")
    bundle.touch()
    worker.signal(signal.SIGHUP)
    manager.until("RELOADING=1")
    assert "the cloud could not be asked about it" in manager.until("READY=1")
    assert len(worker.events("reload_refused")) == 3
    assert worker.running


def test_a_reload_that_comes_while_it_starts_does_not_end_it(tmp_path: Path, bundle: Path) -> None:
    clouds = tmp_path / "clouds.yaml"
    clouds.write_text(
        f"clouds: {{c: {{cacert: {bundle}, auth: {{auth_url: "
        f"'https://127.0.0.1:{free_port()}/v3', username: u,"
        " password: p, project_name: p, user_domain_name: d, project_domain_name: d}}}\n"
    )
    with WorkerProcess(tmp_path, GROUPS, clouds=clouds) as worker:
        # Before that it is Python's start, not ours
        while not _is_safe_from_hangups(worker.pid):
            assert worker.running
            time.sleep(0.01)
        while worker.probe("/healthz")[0] != 200:
            assert worker.running, worker.log.read_text()
            worker.signal(signal.SIGHUP)
            time.sleep(0.05)
        assert worker.running


def _is_safe_from_hangups(pid: int) -> bool:
    """Whether a process ignores or catches SIGHUP."""
    lines = Path("/proc", str(pid), "status").read_text().splitlines()
    return any(
        line.startswith(("SigIgn:", "SigCgt:")) and int(line.split()[1], 16) & 1 for line in lines
    )


@pytest.fixture
def served(tmp_path: Path, manager: Manager) -> Iterator[WorkerProcess]:
    """A worker with a cloud that answers; its brokers are away."""
    cloud = SmallCloud()
    clouds = tmp_path / "clouds.yaml"
    clouds.write_text(cloud.clouds_yaml)
    environment = {"NOTIFY_SOCKET": str(manager.path)}
    groups = {**GROUPS, "cloud": {"name": CLOUD}}
    with WorkerProcess(tmp_path, groups, clouds=clouds, environment=environment) as made:
        while "cloud" in made.probe("/readyz")[1].get("problems", {"cloud": ""}):
            assert made.running, made.log.read_text()
            time.sleep(0.05)
        yield made
    cloud.close()


def _bind(worker: WorkerProcess, address: str) -> None:
    worker.config_path.write_text(
        configuration({**GROUPS, "cloud": {"name": CLOUD}, "probes": {"bind": address}}),
    )


def test_a_reload_to_an_address_that_is_taken_is_refused_and_told(
    served: WorkerProcess, manager: Manager
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        _bind(served, f"127.0.0.1:{port}")
        served.signal(signal.SIGHUP)
        manager.until("RELOADING=1")
        told = manager.until("READY=1")
    assert f"STATUS=reload refused: [probes] bind: 127.0.0.1:{port}: Address already in use" in told
    # Nothing was given up for it
    assert not served.events("reloading")
    assert served.probe("/healthz")[0] == 200


def test_a_reload_to_a_free_address_is_served_there(
    served: WorkerProcess, manager: Manager
) -> None:
    # Which overlaps with the one that is served now
    _bind(served, f"0.0.0.0:{served.port}")
    served.signal(signal.SIGHUP)
    manager.until("RELOADING=1")
    while len(served.events("started")) < 2:
        assert served.running
        time.sleep(0.05)
    assert served.probe("/healthz")[0] == 200
    with socket.create_connection(("127.0.0.2", served.port)):
        pass


def test_an_address_that_turns_out_to_be_taken_is_told_after_the_return_to_the_old_one(
    served: WorkerProcess, manager: Manager
) -> None:
    # Of the port that it serves itself, it cannot tell before it has let go of it
    with socket.create_server(("127.0.0.2", served.port)):
        _bind(served, f"127.0.0.2:{served.port}")
        served.signal(signal.SIGHUP)
        manager.until("RELOADING=1")
        told = manager.until("reload refused")
    assert f"[probes] bind: 127.0.0.2:{served.port}: Address already in use" in told
    deadline = time.monotonic() + 60.0
    while served.probe("/healthz")[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # The next one begins afresh
    _bind(served, f"127.0.0.1:{served.port}")
    served.signal(signal.SIGHUP)
    manager.until("RELOADING=1")
    # One that was sent on the way there still has the words
    manager.until("STATUS=", without="reload refused")


def test_requests_that_never_end_cost_neither_threads_nor_descriptors_nor_health(
    worker: WorkerProcess,
) -> None:
    worker.metric("build_info")
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (256, 256))
    before = worker.usage()
    with contextlib.ExitStack() as clients:
        poll = select.poll()
        for number in range(300):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", worker.port)))
            client.sendall(b"GET /healthz HTTP/1.1\r\n")
            poll.register(client, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
            if number % 50 == 0:
                assert worker.probe("/healthz")[0] == 200
        assert worker.probe("/healthz")[0] == 200
        assert worker.metric("build_info") == 1.0
        during = worker.usage()
        assert during.threads - before.threads <= 8
        assert during.descriptors - before.descriptors <= 100
        # Each is hung up on, though none of them says another word
        while len(poll.poll()) < 300:
            time.sleep(0.1)
    assert worker.probe("/healthz")[0] == 200


@pytest.mark.parametrize("seconds", [0.2, 0.4, 0.8])
def test_ctrl_c_is_no_traceback(tmp_path: Path, seconds: float) -> None:
    (tmp_path / "worker.conf").write_text(
        "[notifications]\ntransport_urls = rabbit://u:p@127.0.0.1:1/\n"
    )
    words = ["-X", "importtime", "-m", "worker", "--config-file", "worker.conf", "record", "-"]
    process = subprocess.Popen(
        # A shell starts what runs in its background with SIGINT ignored
        ["env", "--default-signal=INT", sys.executable, *words],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    try:
        # Before that it is Python's start, not ours
        while not process.stderr.readline().rstrip().endswith("| worker"):
            assert process.poll() is None
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "Traceback" not in said
    # 2: it may have found the configuration wrong before that
    assert process.returncode in (-signal.SIGINT, 0, 130, 2)


def test_it_logs_to_a_file_that_logrotate_may_move(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    shared = {"DEFAULT": {"debug": "true", "log_dir": str(folder)}}
    file = folder / "image-volume-worker.log"
    clouds = tmp_path / "clouds.yaml"
    clouds.write_text(
        f"clouds: {{c: {{auth: {{auth_url: 'http://127.0.0.1:{free_port()}/v3', username: u,"
        " password: p, project_name: p, user_domain_name: d, project_domain_name: d}}}\n"
    )
    with WorkerProcess(tmp_path, GROUPS | shared, clouds=clouds) as worker:
        until(lambda: file.exists() and b"cloud_away" in file.read_bytes(), told=worker.log)
        file.rename(folder / "old")
        # Each reload that is refused is a line
        worker.signal(signal.SIGHUP)
        until(lambda: file.exists() and b"reload_refused" in file.read_bytes(), told=worker.log)
        assert worker.log.read_text() == ""
    assert b'"level": "debug"' in (folder / "old").read_bytes()


def test_a_log_file_that_cannot_be_opened_is_a_fault_of_the_configuration(tmp_path: Path) -> None:
    shared = {"DEFAULT": {"log_file": str(tmp_path / "nowhere" / "worker.log")}}
    worker = WorkerProcess(tmp_path, GROUPS | shared, clouds=tmp_path / "clouds.yaml")
    done = worker.run("run")
    assert done.returncode == 2
    assert "[DEFAULT] log_file" in done.stderr
    assert "No such file or directory" in done.stderr


def until(check: Callable[[], object], *, told: Path) -> None:
    deadline = time.monotonic() + 60.0
    while not check():
        assert time.monotonic() < deadline, told.read_text()
        time.sleep(0.1)


class Collector:
    """Takes traces as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    data = gzip.decompress(data)
                if self.path == "/v1/traces":
                    asked = ExportTraceServiceRequest.FromString(data)
                    spans.extend(
                        span
                        for resource in asked.resource_spans
                        for scope in resource.scope_spans
                        for span in scope.spans
                    )
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_it_sends_traces_of_jobs_and_their_requests(tmp_path: Path) -> None:
    cloud, collector = SmallCloud(), Collector()
    clouds = tmp_path / "clouds.yaml"
    clouds.write_text(cloud.clouds_yaml)
    groups = {
        **GROUPS,
        "cloud": {"name": CLOUD},
        "tracing": {"otlp_endpoint": collector.url},
        "log": {"format": "json", "level": "debug"},
    }
    try:
        with WorkerProcess(tmp_path, groups, clouds=clouds) as made:
            deadline = time.monotonic() + 60
            while not made.events("job_again"):
                assert made.running, made.log.read_text()
                assert time.monotonic() < deadline, made.log.read_text()
                time.sleep(0.1)
            # What is left is sent at the end
            assert made.stop() == 0
            (line, *_) = made.events("job_again")
            answered = [
                one
                for one in made.events("api_answered")
                if one.get("request_id") == line["request_id"]
            ]
    finally:
        collector.close()
        cloud.close()
    jobs = [span for span in collector.spans if span.name == "job prewarm"]
    told = {one.key: one.value.string_value for one in jobs[0].attributes}
    assert told["request_id"] == line["request_id"]
    requests = [span for span in collector.spans if span.parent_span_id == jobs[0].span_id]
    assert "GET image" in {span.name for span in requests}
    paths = [
        one.value.string_value
        for span in requests
        for one in span.attributes
        if one.key == "url.path"
    ]
    assert sorted(paths) == sorted(one["path"] for one in answered)
