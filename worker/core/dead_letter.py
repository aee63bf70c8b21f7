"""A dead letter: a job that gave up, or a message nobody could read, kept for a person to look
at."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass

from worker.core.errors import Malformed
from worker.core.job import Job

# Bytes and characters that are kept: a broker has limits for a message (RabbitMQ 4: 16 MiB), and a
# person has too
MOST_BODY = 65_536
MOST_TRACEBACK = 20_000
MOST_REASON = 4_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """Why it was given up, when (epoch seconds), and either the job or the message's bytes. What is
    too long is cut."""

    lane: str
    reason: str
    last_at: float
    job: Job | None = None
    body: bytes | None = None
    traceback: str = ""

    def __post_init__(self) -> None:
        """Keep the first bytes of a message, and of a traceback the end: where it was raised comes
        last."""
        cut: dict[str, object] = {
            "reason": self.reason[:MOST_REASON],
            "traceback": self.traceback[-MOST_TRACEBACK:],
        }
        if self.body is not None:
            cut["body"] = self.body[:MOST_BODY]
        for name, value in cut.items():
            object.__setattr__(self, name, value)

    def to_bytes(self) -> bytes:
        """The letter as JSON; a message's bytes in base64."""
        fields = {
            "lane": self.lane,
            "reason": self.reason,
            "last_at": self.last_at,
            "job": None if self.job is None else self.job.to_bytes().decode(),
            "body": None if self.body is None else base64.b64encode(self.body).decode(),
            "traceback": self.traceback,
        }
        return json.dumps(fields, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> DeadLetter:
        """The letter that `to_bytes` wrote; Malformed if it is anything else."""
        try:
            fields = json.loads(raw)
            job, body = fields["job"], fields["body"]
            return cls(
                lane=str(fields["lane"]),
                reason=str(fields["reason"]),
                last_at=float(fields["last_at"]),
                job=None if job is None else Job.from_bytes(job.encode()),
                body=None if body is None else base64.b64decode(body, validate=True),
                traceback=str(fields["traceback"]),
            )
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            RecursionError,
            binascii.Error,
        ) as error:
            raise Malformed(f"not a dead letter: {error!r}") from error
