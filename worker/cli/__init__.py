"""The command line: one module a command, options that all share, errors as one clear line."""

from __future__ import annotations

import argparse
import difflib
import logging
import signal
from contextlib import nullcontext
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, NoReturn

from cliff.app import App
from cliff.command import Command
from cliff.commandmanager import CommandManager
from oslo_config import cfg

from worker.core import request_id
from worker.core.errors import Misconfigured
from worker.core.plain import plain
from worker.core.release import release
from worker.observe import log

if TYPE_CHECKING:
    from worker.settings import Settings

WRONG = 2
TOLD_BY_ERRORS = ("keystoneauth", "worker.broker.link")


class _Commands(CommandManager):
    """The commands by their entry points. cliff's own list imports the modules of all of them, which
    takes half a second."""

    def load_commands(self, namespace: str) -> None:
        self.group_list.append(namespace)
        for entry in entry_points(group=namespace):
            self.commands[entry.name.replace("_", " ")] = entry


class Worker(App):
    """Finds the command, reads the configuration, turns errors into an exit status."""

    # cliff takes these from sys.argv, which is another thing under python -m
    NAME = "image-volume-worker"
    LOG = logging.getLogger(NAME)

    def __init__(self) -> None:
        # --version prints it
        App.NAME = self.NAME
        super().__init__(
            description="Keeps Glance images warm as Cinder volumes: booting from an image "
            "becomes a clone.",
            version=release(),
            command_manager=_Commands("image_volume_worker.commands"),
            deferred_help=True,
        )
        self.failure: BaseException | None = None

    def build_option_parser(self, *args: Any, **kwargs: Any) -> argparse.ArgumentParser:
        """Return the parser of the options that come before the command."""
        parser: argparse.ArgumentParser = _brief(super().build_option_parser(*args, **kwargs))
        # fmt: off
        parser.add_argument("--config-file", action="append", default=[], metavar="F",
                            help="Configuration file; may be repeated.")
        parser.add_argument("--config-dir", action="append", default=[], metavar="D",
                            help="Folder of files that end in .conf.")
        # fmt: on
        return parser

    def get_fuzzy_matches(self, cmd: str) -> list[str]:
        """Commands that a mistyped one is likely to mean: `stauts` is status, `foo` is none."""
        names = [name for name, _ in self.command_manager]
        return difflib.get_close_matches(cmd, names, cutoff=0.6)

    def configure_logging(self) -> None:
        """Log warnings and worse, as text, until a command sets up its own logs; our errors as
        plain lines."""
        log.setup(level="debug" if self.options.debug else "warning", style="text")
        handler = logging.StreamHandler()
        handler.setFormatter(_Plain("image-volume-worker: %(message)s"))
        handler.addFilter(_with_words)
        self.LOG.handlers[:] = [handler]
        self.LOG.propagate = False
        if not self.options.debug:
            # The command's own error says the same of a service or broker that is away
            for name in TOLD_BY_ERRORS:
                logging.getLogger(name).setLevel(logging.ERROR)

    def read_settings(self, *, quiet: bool = False) -> Settings:
        """Return the configuration, checked; show its warnings, unless `quiet`."""
        # Not before a command needs it: --version and --help have no configuration
        from worker import settings  # noqa: PLC0415

        conf = cfg.ConfigOpts()
        settings.register(conf)
        files = settings.config_files(self.options.config_file)
        folders = settings.config_dirs(self.options.config_dir, files)
        if faults := list(settings.unreadable(files, folders)):
            raise Misconfigured(*faults)
        try:
            conf(
                [],
                project="image-volume-worker",
                default_config_files=files,
                default_config_dirs=folders,
            )
        except (cfg.Error, OSError) as error:
            raise Misconfigured(str(error)) from error
        try:
            loaded = settings.load(conf)
        except Misconfigured as error:
            if files or folders:
                raise
            raise Misconfigured(
                f"no configuration found; looked in {settings.DEFAULT_FILE}", *error.faults
            ) from error
        for warning in () if quiet else loaded.warnings:
            self.LOG.warning(warning)
        return loaded

    def setup_logs(self, settings: Settings) -> None:
        """Log as the configuration says, for a command that is a daemon."""
        for name in TOLD_BY_ERRORS:
            logging.getLogger(name).setLevel(logging.NOTSET)
        log.setup(
            level="debug" if self.options.debug else settings.log_level,
            style=settings.log_style,
            file=settings.log_file,
        )

    def run(self, argv: list[str]) -> int:
        """Return the exit status; without a command that is wrong usage."""
        result: int = super().run(argv)
        return WRONG if self.interactive_mode else result

    def interact(self) -> None:
        """List the commands: none was given."""
        self.stdout = self.stderr
        super().run_subcommand(["help"])

    def run_subcommand(self, argv: list[str]) -> int:
        """Run the command; an error is one line, or several faults with a line each."""
        if argv[0].startswith("-"):
            # cliff takes it for the name of a command
            self.LOG.error("there is no option %s; see %s --help", argv[0], self.NAME)
            return WRONG
        # The daemon has many things to do at once, and each has an id of its own
        one_id = nullcontext() if argv[:1] == ["run"] else request_id.bound()
        with one_id:
            result: int = super().run_subcommand(argv)
        if isinstance(self.failure, Misconfigured):
            return WRONG
        return result

    def prepare_to_run_command(self, cmd: Command) -> None:
        """Have Ctrl-C raise an exception from here on, so that things can be put in order: all
        modules are imported. Have wrong words told in one line."""
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        parser_of = cmd.get_parser
        cmd.get_parser = lambda prog_name: _brief(parser_of(prog_name))  # type: ignore[method-assign]

    def clean_up(self, cmd: Command, result: int, err: BaseException | None) -> None:  # noqa: ARG002  cliff's names
        """Remember why a command failed."""
        self.failure = err


def _brief(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Return the parser, which tells what is wrong in one line, and the usage only with --help."""

    def error(message: str) -> NoReturn:
        parser.exit(WRONG, f"{parser.prog}: {message}; see {parser.prog} --help\n")

    parser.error = error  # type: ignore[method-assign]
    return parser


class _Plain(logging.Formatter):
    """Errors may quote what strangers have written."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


def _with_words(record: logging.LogRecord) -> bool:
    """Name an exception that has no text, such as MemoryError."""
    if isinstance(record.msg, BaseException) and not str(record.msg):
        record.msg = type(record.msg).__name__
    return True
