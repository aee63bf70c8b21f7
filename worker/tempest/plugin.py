"""The plug-in as Tempest finds it: where the scenarios lie, and their options."""

from __future__ import annotations

from pathlib import Path

from oslo_config import cfg
from tempest.test_discover import plugins

GROUP = cfg.OptGroup("image_volume_worker", title="Options of the scenarios of image-volume-worker")
OPTIONS = [
    cfg.StrOpt(
        "volume_type",
        help="Volume type of the target to test. Its strategy must not be native. Required.",
    ),
    cfg.StrOpt(
        "source_property",
        default="image_volume_source",
        help="[uploads] source_property of the worker.",
    ),
    cfg.BoolOpt("uploads", default=True, help="[uploads] enabled of the worker."),
    cfg.IntOpt(
        "rewarm_interval",
        default=600,
        min=0,
        help="[prewarm] rewarm_interval of the worker, in seconds: it makes an Image-Volume that "
        "somebody has deleted again after that time.",
    ),
    cfg.IntOpt(
        "timeout",
        default=600,
        min=1,
        help="Seconds that the worker may take to make an image warm, to complete an upload, or to "
        "delete an Image-Volume.",
    ),
]


class Plugin(plugins.TempestPlugin):
    """The plug-in."""

    def load_tests(self) -> tuple[str, str]:
        """Return the folder of the scenarios, and the folder that their package names begin in."""
        here = Path(__file__).parent
        return str(here), str(here.parents[1])

    def register_opts(self, conf: cfg.ConfigOpts) -> None:
        """Make the options known."""
        conf.register_group(GROUP)
        conf.register_opts(OPTIONS, GROUP)

    def get_opt_lists(self) -> list[tuple[str, list[cfg.Opt]]]:
        """Return the options for a sample of the configuration."""
        return [(GROUP.name, OPTIONS)]
