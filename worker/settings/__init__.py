"""The configuration: options as one table, settings as values. All faults are told at once."""

from worker.settings.files import DEFAULT_FILE, config_dirs, config_files, unreadable
from worker.settings.options import OPTIONS, TARGET_OPTIONS, list_opts, register
from worker.settings.parse import NAME, load
from worker.settings.values import Settings

__all__ = [
    "DEFAULT_FILE",
    "NAME",
    "OPTIONS",
    "TARGET_OPTIONS",
    "Settings",
    "config_dirs",
    "config_files",
    "list_opts",
    "load",
    "register",
    "unreadable",
]
