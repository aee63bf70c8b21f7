"""The story of the README, on the devcloud: an image becomes warm by itself, and another project's
volume is a clone.

usage: story.py METRICS_URL
"""

from __future__ import annotations

import sys
import time
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from scripts.cloud.people import Person, data

TARGETS = ("local-1", "local-2")
SIZE = 1024
PATIENCE = 600.0
SHOWN = (
    "notifications_total",
    "jobs_total",
    "uploads_completed_total",
    "image_volumes",
    "volume_create_seconds_sum",
    "volume_create_seconds_count",
)


def main(metrics: str) -> int:
    """Tell it, with the times that were measured; 1 if it did not come true."""
    alice, bob, operator = Person("alice"), Person("bob"), Person("operator")
    data(SIZE)
    for image in alice.images():
        if image["name"].startswith("quickstart-"):
            alice.delete_image(image["id"])
    cold = alice.image("quickstart-cold", mebibytes=SIZE, image_volume_prewarm="no")
    print(
        f"alice has uploaded an image of {SIZE // 1024} GiB that says image_volume_prewarm=no, "
        f"for comparison"
    )
    warm = alice.image("quickstart-warm", mebibytes=SIZE)
    active = time.monotonic()
    print(
        "and another one. Nobody asks for anything; the worker hears of it and has it copied ...",
        flush=True,
    )
    for target in TARGETS:
        until_warm(operator, warm, target)
        print(
            f"  an Image-Volume on {target} is there {time.monotonic() - active:.1f} s after the "
            f"image was active",
            flush=True,
        )
    good = True
    print("bob, of another project, makes a volume from each on each backend:")
    for target in TARGETS:
        with bob.temporary_volume(cold, target) as slow:
            pass
        with bob.temporary_volume(warm, target) as fast:
            pass
        good = good and fast.cloned and not slow.cloned
        print(
            f"  {target}: not warm {slow.seconds:.1f} s ({how(slow.cloned)}), "
            f"warm {fast.seconds:.1f} s ({how(fast.cloned)}): {slow.seconds / fast.seconds:.1f} "
            f"times as fast",
            flush=True,
        )
    good = upload(alice, bob) and good
    print("The worker's own metrics say:")
    with urllib.request.urlopen(metrics) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        for sample in (sample for family in families for sample in family.samples):
            if sample.name.removeprefix("image_volume_worker_") in SHOWN and sample.value:
                labels = ", ".join(
                    f"{name}={value}" for name, value in sample.labels.items() if value
                )
                print(f"  {sample.name} {{{labels}}} {sample.value:g}")
    if not good:
        print("something was not a clone; see the worker's log", file=sys.stderr)
    return 0 if good else 1


def upload(alice: Person, bob: Person) -> bool:
    """A volume of alice's becomes an image, by Cinder's copy and by the worker; bob's volume of it
    is a clone."""
    image_id = alice.image("quickstart-source", mebibytes=SIZE, image_volume_prewarm="no")
    print(f"alice has a volume of {SIZE // 1024} GiB, and makes images of it:")
    with alice.temporary_volume(image_id, TARGETS[0]) as source:
        began = time.monotonic()
        clone = alice.queued(
            "quickstart-clone", image_volume_source=source.id, image_volume_prewarm="no"
        )
        cloned = until_active(alice, clone) - began
        # The copy comes last: once it is active it is made warm everywhere, which keeps the machine
        # busy
        began = time.monotonic()
        copy = alice.upload(source.id, "quickstart-copy")
        copied = until_active(alice, copy) - began
        print(
            f"  Cinder's upload-to-image {copied:.1f} s, an image record with "
            f"image_volume_source={source.id} "
            f"{cloned:.1f} s: {copied / cloned:.1f} times as fast",
            flush=True,
        )
        same = alice.sha256(copy) == alice.sha256(clone)
        print(f"  their bytes are {'the same' if same else 'NOT THE SAME'}")
        with bob.temporary_volume(clone, TARGETS[0]) as made:
            print(f"  bob's volume from it: {made.seconds:.1f} s ({how(made.cloned)})", flush=True)
    return same and made.cloned


def until_active(alice: Person, image_id: str) -> float:
    """When the image became active."""
    deadline = time.monotonic() + PATIENCE
    while alice.show(image_id)["status"] != "active":
        if time.monotonic() > deadline:
            raise TimeoutError(f"image {image_id} is not active; see the worker's log")
        time.sleep(0.1)
    return time.monotonic()


def how(cloned: bool) -> str:
    """What Cinder's log says that it did."""
    return "cloned" if cloned else "downloaded"


def until_warm(operator: Person, image_id: str, target: str) -> None:
    """Return when the image has an Image-Volume on the target that Cinder clones for everybody."""
    deadline = time.monotonic() + PATIENCE
    while not any(
        volume["name"] == f"image-{image_id}"
        and volume["metadata"].get("image_volume_worker") == target
        for volume in operator.volumes()
    ):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the image is not warm on {target}; see the worker's log")
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
