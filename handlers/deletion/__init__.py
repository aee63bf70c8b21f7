"""Deletion: the rules for deleting volumes and removing locations; only `delete` does both.

docs/upkeep.md states the rules as a promise to operators. In short: what cannot be read is not
empty; an image is gone only when that is proven; only what carries our marks and matches reality is
ours; an image that is there keeps a whole location that we did not make.
"""

from handlers.deletion.delete import Deletion
from handlers.deletion.gone import Gone
from handlers.deletion.proof import NotProven
from handlers.deletion.stuck import report_stuck
from handlers.deletion.unwanted import Unwanted

__all__ = ["Deletion", "Gone", "NotProven", "Unwanted", "report_stuck"]
