"""One border under libFuzzer, which steers its inputs by the code that they reach; see
scripts/fuzz."""

from __future__ import annotations

import sys

import atheris

# Before anything else imports them
with atheris.instrument_imports(include=["worker", "handlers"]):
    from tests.fuzz.borders import Borders

from worker.observe import log


def main() -> None:
    """`python -m tests.fuzz.long BORDER OPTIONS-OF-LIBFUZZER...`; what fails is shown, and ends
    it."""
    log.setup(level="critical")
    border = Borders().all[sys.argv[1]]
    atheris.Setup([sys.argv[0], *sys.argv[2:]], border)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
