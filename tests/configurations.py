"""Configurations for tests: one that works, and the settings that come of a file."""

from __future__ import annotations

from pathlib import Path

from oslo_config import cfg

from tests.worker_process import configuration
from worker import settings
from worker.settings import Settings

GOOD = {
    "notifications": {"transport_urls": "rabbit://u:p@h:5672/"},
    "prewarm": {"targets": "fast,slow"},
    "target:fast": {"volume_type": "ssd"},
    "target:slow": {
        "volume_type": "hdd",
        "strategy": "cache",
        "disk_formats": "raw,qcow2",
        "max_concurrent": 2,
    },
}


def load(tmp_path: Path, groups: dict[str, dict[str, object]]) -> Settings:
    return load_text(tmp_path, configuration(groups))


def load_text(tmp_path: Path, text: str) -> Settings:
    file = tmp_path / "worker.conf"
    file.write_text(text)
    conf = cfg.ConfigOpts()
    settings.register(conf)
    conf([], default_config_files=[str(file)], default_config_dirs=[])
    return settings.load(conf)
