"""Random choices out of bytes, so that whoever makes the bytes up (hypothesis, libFuzzer) steers
and shrinks them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1 << 63, 1 << 200, 1e308, float("inf"), float("nan"), "", " ", "\x00", "a" * 255,
    "\u202e\x1b[31m", "\ud800", "𝔘𝔫𝔦", "../../etc/passwd", "'; DROP TABLE images; --", "{{7*7}}", "%s%n", "$(id)",
    "cinder://", "cinder://[", "cinder://a/b/c", "cinder://../x", "http://[::1", "9999-99-99T99:99:99",
    "0001-01-01T00:00:00", "9999-12-31T23:59:59.999999+00:00", "image-" + "0" * 36, "0" * 36, "NaN", "-0", "1_000",
    "١٢",
    [], {}, [None], [[]], {"": None}, {"key": "value"}, [{"key": "k", "value": "v"}], [{"key": None}], {"limit": "x"},
)  # fmt: skip
DEEP = 400
LONG = 100_000


class Dice:
    """Bytes, taken one after the other; zeros when they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> bytes:
        """What has not been used."""
        return self._data[self._at :]

    def below(self, limit: int) -> int:
        """A number from 0 to less than `limit`, of up to two bytes."""
        size = 1 if limit <= 256 else 2
        chunk = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(chunk, "big") % limit

    def pick(self, items: Sequence[T]) -> T:
        """One of them."""
        return items[self.below(len(items))]

    def hostile(self) -> Any:
        """A value that nobody expects there."""
        match self.below(8):
            case 0:
                deep: Any = None
                for _ in range(self.below(DEEP)):
                    deep = [deep] if self._at % 2 else {"a": deep}
                return deep
            case 1:
                return self.pick(("a", "é", "\x00", "{")) * self.below(LONG)
            case 2:
                return [self.pick(HOSTILE)] * self.below(300)
            case 3:
                return {str(number): self.pick(HOSTILE) for number in range(self.below(300))}
            case 4:
                chunk = self.left[:40]
                self._at += len(chunk)
                return chunk.decode("utf-8", "surrogateescape")
            case _:
                return self.pick(HOSTILE)

    def mutated(self, document: Any) -> Any:
        """The document with some of its parts missing, doubled, swapped, or replaced by something
        hostile."""
        for _ in range(1 + self.below(4)):
            document = self._mutated(document, depth=8)
        return document

    def _mutated(self, document: Any, depth: int) -> Any:
        if not depth or not isinstance(document, dict | list) or not document or self.below(6) == 0:
            return self.hostile()
        if isinstance(document, dict):
            name = self.pick(list(document))
            match self.below(6):
                case 0:
                    return {key: value for key, value in document.items() if key != name}
                case 1:
                    return {**document, name: document[self.pick(list(document))]}
                case 2:
                    return {**document, str(self.hostile())[:300]: document[name]}
                case _:
                    return {**document, name: self._mutated(document[name], depth - 1)}
        place = self.below(len(document))
        match self.below(4):
            case 0:
                return document[:place] + document[place + 1 :]
            case 1:
                return document + document[: place + 1]
            case _:
                return [
                    *document[:place],
                    self._mutated(document[place], depth - 1),
                    *document[place + 1 :],
                ]
