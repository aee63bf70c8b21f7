"""Workers whose targets all have one strategy."""

from __future__ import annotations

from worker.core.target import Policy, Strategy, Target
from worker.testing.fake_cloud import FakeCloud
from worker.testing.rig import FAST, SLOW, Rig, using


def rig_of(cloud: FakeCloud, strategy: Strategy, *targets: Target, **parts: object) -> Rig:
    """A worker with these targets by this strategy; nothing is heard of unless the test says so."""
    if strategy == "cache":
        cloud.cached = frozenset({"fast", "slow"})
    policy = parts.pop("policy", Policy(settle=0.0, rewarm_interval=0.0))
    return Rig(cloud, targets=using(strategy, *(targets or (FAST, SLOW))), policy=policy, **parts)  # type: ignore[arg-type]


class DeletedAtOnce(FakeCloud):
    """A cloud whose users delete an image as soon as it has a location of ours."""

    async def add_location(self, image_id: str, url: str) -> None:
        await super().add_location(image_id, url)
        self.delete_image(image_id)
