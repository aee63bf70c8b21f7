"""Deletion: the only package that deletes volumes and removes locations, and the rules for both."""

from handlers.deletion.delete import Deletion, NotProven, report_stuck

__all__ = ["Deletion", "NotProven", "report_stuck"]
