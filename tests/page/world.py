"""A worker as the page sees it: something of everything, behind real probes."""

from __future__ import annotations

import time
import uuid
from typing import Any

from prometheus_client import CollectorRegistry

from tests.page.browser import Browser
from worker.core.cloud import GIB, Image, Volume
from worker.core.creation import Creation, Made, Way
from worker.core.job import Job, Key
from worker.core.outcome import Again, Done, Park, Skip
from worker.core.pool import Place
from worker.core.state import State
from worker.core.target import TAG, Target
from worker.observe.activity import Activity
from worker.observe.http import Page, Probes
from worker.observe.image_volumes import ImageVolumes
from worker.observe.joint import FORMAT, joint
from worker.observe.status_document import Services

EVIL = "<script>document.title='evil'</script><b>bold</b>"
TARGETS = ("fast", "slow")
POOLS = (Place(("ctl@fast#pool",)), Place(("ctl@fast#other",)))
PLACES = (
    Target(
        name="fast",
        volume_type="fast",
        strategy="store",
        max_gigabytes=200,
        max_count=50,
        places=POOLS,
    ),
    Target(name="slow", volume_type="slow", strategy="store"),
)
LANES = {"upload": 8, "reclaim": 4, "prewarm.fast": 2, "prewarm.slow": 2}


def image_id(number: int) -> str:
    return f"{number:08d}-0000-4000-8000-000000000000"


def image(number: int, **fields: Any) -> Image:
    defaults: dict[str, Any] = {
        "id": image_id(number), "status": "active", "owner": f"project-{number % 3}", "disk_format": "raw",
        "container_format": "bare", "visibility": "public", "name": f"image {number}",
        "size": (number % 7 + 1) * GIB,
    }  # fmt: skip
    return Image(**(defaults | fields))


def job(number: int, target: str = "fast", *, handler: str = "prewarm", attempt: int = 0) -> Job:
    return Job(
        key=Key(handler, image_id(number), target),
        cause="image.activate x",
        attempt=attempt,
        first_at=time.time() - 90,
    )


def creation(number: int, **fields: Any) -> Creation:
    defaults: dict[str, Any] = {
        "volume_id": image_id(0), "image_id": image_id(number), "target": "fast", "began": 1.0, "ended": 2.0,
    }  # fmt: skip
    return Creation(**(defaults | fields))


def activity(images: int = 40) -> Activity:
    """Something of everything."""
    made = Activity()
    made.comparing()
    for number in range(images):
        states = dict.fromkeys(TARGETS, (State.WARM, ""))
        if number % 5 == 1:
            states["slow"] = (State.COLD, "not in store cinder-slow")
        if number == 7:
            states["fast"] = (State.FULL, "target fast is full (20 of 20 GiB)")
        made.look(image(number), states)
    made.look(
        image(images, visibility="private", name="a tenant's secret"),
        dict.fromkeys(TARGETS, (State.WARM, "")),
    )
    made.compared()
    made.weighed({"fast": 120 * GIB, "slow": 90 * GIB})
    made.listed(image_volumes(images))
    for number in range(12):
        made.warmed(job(number).key, 3.0 + number)
        made.created(creation(number, seconds=0.8 + number / 10), Made(Way.CACHE))
    made.created(creation(3, target="slow", seconds=33.0), Made(Way.DOWNLOAD, ("no_location",)))
    made.created(creation(4, target="slow", seconds=9.0), Made(Way.UNKNOWN))
    made.settled(job(30, "", handler="upload"), Skip("no such volume", State.UPLOAD))
    made.settled(job(31, "", handler="upload"), Done(changed=True))
    made.settled(job(32, "", handler="upload"), Again("over quota", counted=False), due=4e9)
    made.began(job(1, "slow"))
    made.doing(job(1, "slow").key, "Have Glance copy the image into stores")
    made.warmed(job(2, "slow").key, 12.0)
    made.settled(job(6, "slow", attempt=3), Again(EVIL), due=time.time() + 95)
    made.settled(job(11, "slow", attempt=20), Park("no such volume type"), due=time.time() + 95)
    made.settled(job(16, "slow"), Skip("image is too small"))
    return made


def image_volumes(images: int) -> ImageVolumes:
    """An Image-Volume of each image on each target."""
    made = ImageVolumes(used_of=lambda _: time.time() - 7200)
    for number in range(images):
        for place, target in enumerate(TARGETS):
            one = Volume(
                id=str(uuid.UUID(int=number * 10 + place)), name="n", status="available", volume_type=target,
                size=number % 7 + 1, created_epoch=time.time() - 86400 * 3, host=f"ctl@{target}#pool",
                metadata={TAG: target},
            )  # fmt: skip
            made.add(image_id(number), one)
    return made


class Served:
    """An activity behind real probes, on a port that stays."""

    def __init__(self, shown: Activity) -> None:
        self.activity = shown
        self.problems: dict[str, str] = {}
        self.depths = {"prewarm.fast": 17, "dead": 3}
        self.others: list[tuple[dict[str, Any], float]] = []
        self.port = 0
        self.start()

    def start(self) -> None:
        page = Page(
            status=lambda most: joint(
                self.document(self.activity, "controller-1", most), self.others, most=most
            ),
            images=lambda choice: self.activity.images(TARGETS, choice),
            image=lambda one: self.activity.image(one, TARGETS),
        )
        self._probes = Probes(
            registry=CollectorRegistry(), sick=dict, unready=lambda: dict(self.problems), page=page
        )
        self.port = self._probes.start("127.0.0.1", self.port)

    def document(self, shown: Activity, host: str, most: float = 200) -> dict[str, Any]:
        """What one replica knows; only the first one serves most lanes."""
        first = host == "controller-1"
        services = Services(
            targets=PLACES,
            lanes=LANES,
            depths=self.depths,
            serves=lambda lane: (lane != "prewarm.slow") is first,
        )
        status = shown.status(services, most=most)
        words = {"no_location": {"sentence": "a sentence", "advice": "an advice"}}
        named = {"format": FORMAT, "version": "1.2.3", "host": host, "reasons": words}
        return {**named, **status, "held_back": [], "cache_full": {}, "cloned_from": {}}

    def stop(self) -> None:
        self._probes.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


def opened(
    browser: Browser, served: Served, *, width: int = 1280, height: int = 800, dark: bool = False
) -> None:
    # The page of the test before has lost its worker, and says so
    browser.call("Page.navigate", url="about:blank")
    browser.until("location.href === 'about:blank'")
    browser.requests.clear()
    browser.errors.clear()
    browser.open(served.url, width=width, height=height, dark=dark)
    browser.until(
        "document.readyState === 'complete' && document.querySelectorAll('#images tbody "
        "tr.image').length"
    )


def text(browser: Browser, selector: str) -> str:
    return str(browser.value(f"document.querySelector({selector!r}).innerText"))
