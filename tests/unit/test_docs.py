"""What the documentation shows does what it says."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pytest
from cliff.command import Command

from tests.configurations import load_text
from worker.cli import Worker
from worker.core.deletions import Deletions
from worker.core.handler import Handler, Parts
from worker.core.job import Key
from worker.core.locks import Locks
from worker.core.notification import Notification
from worker.core.outcome import Done, Skip
from worker.core.target import Policy, Reclaiming, Uploads
from worker.core.uses import Uses
from worker.observe.metrics import Metrics
from worker.testing.fake_cloud import PROJECT, FakeCloud
from worker.testing.rig import FAST, STORES

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
GONE = "99999999-9999-4999-8999-999999999999"


class Silent:
    """`Watch` of nobody."""

    async def changed(self) -> None:
        raise AssertionError("it has nothing to wait for")

    def tell(self, step: str) -> None:
        assert step


def handler_of_the_docs() -> dict[str, Any]:
    """All that the page on handlers shows, as one module: a handler, and its test."""
    shown = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "handlers.md").read_text(), re.DOTALL
    )
    assert len(shown) == 2
    module: dict[str, Any] = {"__name__": "label"}
    for source in shown:
        exec(compile(source, "docs/handlers.md", "exec"), module)
    return module


async def test_the_test_of_the_docs_passes() -> None:
    await handler_of_the_docs()["test_a_label_is_written"]()


async def test_the_handler_of_the_docs_works() -> None:
    module = handler_of_the_docs()
    cloud = FakeCloud(stores=STORES)
    parts = Parts(
        cloud=cloud,
        urgent=cloud,
        targets=(FAST,),
        policy=Policy(),
        uploads=Uploads(),
        reclaiming=Reclaiming(),
        uses=Uses(),
        deletions=Deletions(),
        now=cloud.now,
        report=Metrics(),
        locks=Locks(),
    )
    handler: Handler = module["Label"](parts)
    image = cloud.upload(properties={"os_distro": "debian"})
    volume = cloud.volume_of(PROJECT, name=f"image-{image.id}")
    said = Notification.of({"event_type": "image.update", "payload": {"id": image.id}})
    (key,) = handler.keys(said)
    assert [missing.key for missing in handler.incomplete(image.id, image, (volume,))] == [key]
    assert await handler.reconcile(key, Silent()) == Done("1 labelled", changed=True)
    after = cloud.volumes[volume.id]
    assert after.metadata["os_distro"] == "debian"
    assert list(handler.incomplete(image.id, image, (after,))) == []
    assert await handler.reconcile(key, Silent()) == Done("0 labelled")
    assert isinstance(await handler.reconcile(Key("label", GONE), Silent()), Skip)
    assert set(handler.lanes()) == {"label"}


@pytest.mark.parametrize("page", [*DOCS, ROOT / "README.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert "://" in link or (page.parent / link).exists(), link


def test_the_configuration_of_the_readme_is_one(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```ini\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    settings = load_text(tmp_path, shown)
    assert [target.name for target in settings.targets] == ["fast", "archive"]
    assert len(settings.transport_urls) == 2


def options_of(command: type[Command]) -> set[str]:
    """The long options that a command adds to those which cliff gives to all of its kind."""
    app = Worker()
    kind = next(base for base in command.__mro__ if base.__module__.startswith("cliff."))
    parsers = [
        made(app, None).get_parser("x")
        for made in (command, type("Plain", (kind,), {"take_action": None}))
    ]
    mine, common = (
        {o for action in parser._actions for o in action.option_strings} for parser in parsers
    )
    return {option for option in mine - common if option.startswith("--")}


@pytest.mark.parametrize(
    "entry", entry_points(group="image_volume_worker.commands"), ids=lambda entry: entry.name
)
def test_every_command_and_option_is_documented(entry: EntryPoint) -> None:
    words = entry.name.replace("_", " ").split()
    page = (ROOT / "docs" / "commands.md").read_text()
    assert words[0] in page
    missing = {option for option in options_of(entry.load()) if option not in page}
    assert missing == set()
