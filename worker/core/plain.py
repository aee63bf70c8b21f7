"""Plain text: what strangers write, so that it neither steers a terminal nor turns around what
stands beside it."""

from __future__ import annotations


def plain(text: str, *, keep: str = "\n") -> str:
    """The text with all that is not seen made visible, as in `\\u202e`: control, direction and
    format characters.

    `keep` are those that stay.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in keep else _escaped(one) for one in text)


def _escaped(one: str) -> str:
    return one.encode("unicode_escape").decode()
