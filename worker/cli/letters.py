"""Letters: which of the dead letters a person has chosen, and what is shown of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from worker.broker.dead_letters import Kept
from worker.cli import values
from worker.core.plain import plain


def narrows(options: argparse.Namespace) -> Iterator[object]:
    """Yield what was given of the options that choose letters, besides ids."""
    yield from (
        options.handler,
        options.target,
        options.image_id,
        options.reason,
        options.older_than,
    )


def fits(kept: Kept, options: argparse.Namespace, now: float) -> bool:
    """Whether the options choose this letter."""
    letter = kept.letter
    if letter is None:
        return not any(narrows(options))
    key = letter.job.key if letter.job else None
    return all((
        not options.handler or (key is not None and key.handler == options.handler),
        not options.target or (key is not None and key.target == options.target),
        not options.image_id or (key is not None and key.image_id.lower() == options.image_id.lower()),
        options.reason.lower() in letter.reason.lower(),
        now - letter.last_at >= options.older_than,
    ))  # fmt: skip


def row(kept: Kept) -> tuple[str, str, str, object, str, str]:
    """Return the line of a letter in the table."""
    letter = kept.letter
    if letter is None:
        return kept.id, "", "", "", "", "not a dead letter of this program"
    job = letter.job
    return (
        kept.id,
        plain(letter.lane),
        plain(job.key.image_id) if job else "",
        job.attempt if job else "",
        values.moment(letter.last_at),
        plain(letter.reason),
    )


def fields_of(kept: Kept) -> Iterator[tuple[str, object]]:
    """Yield all that is known of a letter, field by field."""
    letter = kept.letter
    yield "id", kept.id
    if letter is None:
        yield "message", kept.raw.decode(errors="replace")
        return
    yield "lane", letter.lane
    yield "reason", letter.reason
    yield "given up", values.moment(letter.last_at)
    if job := letter.job:
        yield from (
            ("handler", job.key.handler),
            ("image", job.key.image_id),
            ("target", job.key.target),
        )
        yield from (
            ("tries", job.attempt),
            ("cause", job.cause),
            ("first asked for", values.moment(job.first_at)),
        )
    if letter.body is not None:
        yield "message", letter.body.decode(errors="replace")
    if letter.traceback:
        yield "traceback", letter.traceback
