"""The cost of the worker as a cloud grows: images, targets, replicas; as a table and as plots."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from scripts.cloud.operate import PASSWORD, groups, rabbitmqctl
from scripts.cloud.people import HOME
from tests.worker_process import WorkerProcess

Row = dict[str, Any]
IMAGES = (1_000, 10_000, 100_000)
TARGETS = (1, 3, 10)
REPLICAS = (1, 2, 4)


def grow(options: argparse.Namespace) -> list[Row]:
    """A comparison of each size in a process of its own, then so many replicas on the devcloud at
    rest."""
    rows = [compared(images, targets) for targets in TARGETS for images in IMAGES]
    rows += [replicas(count, options.seconds) for count in REPLICAS]
    if options.plot:
        plot(rows, options.plot)
    return [
        {name: row.get(name, "") for name in dict.fromkeys(key for row in rows for key in row)}
        for row in rows
    ]


def compared(images: int, targets: int) -> Row:
    """The figures of `scripts/bench resync` for a cloud of this size."""
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder, "resync.json")
        words = ("resync", "--images", str(images), "--targets", str(targets), "--json", str(said))
        subprocess.run(
            [sys.executable, "scripts/bench.py", *words], check=True, stdout=subprocess.DEVNULL
        )
        row = json.loads(said.read_text())[0]
    return {"images": images, "targets": targets, "calls": row["calls"], "took s": row["took s"],
            "MiB": row["peak MiB"], "MiB more": row["peak MiB"] - row["at rest MiB"]}  # fmt: skip


def replicas(count: int, seconds: float) -> Row:
    """So many workers with nothing to do, all together."""
    url = f"amqp://openstack:{PASSWORD}@127.0.0.1:5672/worker"
    with ExitStack() as stack:
        workers = []
        for _ in range(count):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            workers.append(
                WorkerProcess(folder, groups(work={"url": url}), clouds=HOME / "clouds.yaml")
            )
            stack.enter_context(workers[-1])
        for worker in workers:
            worker.wait_ready()
        # The comparison at the start is no rest
        while not all(worker.events("resynced") for worker in workers):
            time.sleep(0.1)
        time.sleep(10)
        before = sum(worker.usage().seconds for worker in workers)
        time.sleep(seconds)
        usages = [worker.usage() for worker in workers]
        channels = len(rabbitmqctl("list_channels", "pid").splitlines()) - 1
        asked = statistics.mean(worker.metric("api_requests_total") for worker in workers)
    return {"replicas": count, "MiB": sum(usage.memory for usage in usages) / (1 << 20),
            "% of a core": 100 * (sum(usage.seconds for usage in usages) - before) / seconds,
            "channels": channels, "requests to start, each": asked}  # fmt: skip


def plot(rows: list[Row], file: Path) -> None:
    """The rows as an SVG: time, memory and calls over images, a line for each number of targets;
    then replicas."""
    # Only here: it is not among what the other benchmarks need
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("svg")
    # The same figures shall make the same file
    mpl.rcParams.update({"svg.hashsalt": "image-volume-worker", "font.size": 9})
    import matplotlib.pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(1, 4, figsize=(13, 3), layout="constrained")
    panels = (
        ("took s", "a comparison: seconds"),
        ("MiB", "a comparison: MiB"),
        ("calls", "a comparison: requests"),
    )
    for place, (name, title) in zip(axes, panels, strict=False):
        for targets in TARGETS:
            line = [row for row in rows if row.get("targets") == targets]
            label = f"{targets} target{'s' * (targets > 1)}"
            place.plot(
                [row["images"] for row in line],
                [row[name] for row in line],
                marker="o",
                label=label,
            )
        place.set(title=title, xlabel="images", xscale="log")
        if name != "MiB":
            place.set_yscale("log")
        place.legend(frameon=False)
    line = [row for row in rows if "replicas" in row]
    axes[3].plot(
        [row["replicas"] for row in line],
        [row["MiB"] for row in line],
        marker="o",
        label="MiB, together",
    )
    axes[3].plot(
        [row["replicas"] for row in line],
        [row["channels"] for row in line],
        marker="o",
        label="channels",
    )
    axes[3].set(title="replicas at rest", xlabel="replicas", xticks=list(REPLICAS), ylim=(0, None))
    axes[3].legend(frameon=False)
    figure.savefig(file, metadata={"Date": None})
