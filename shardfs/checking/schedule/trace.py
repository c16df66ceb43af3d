"""What makes a run happen again: the choices it was given, as numbers and as one short word.

Role: a Trace holds every choice of a run in the order asked (which task goes on, whether a scope
is cancelled now, what a draw gave) and a digest of what the run then did. Its text goes into a
failure's line and comes back from there.

Invariants:
    I1. A choice is an index into what could have been chosen; 0 is the plainest: the task that ran
        last goes on, nothing is cancelled, a draw gives 0. Choices beyond the last one are 0, so
        zeros at the end are never kept.
    I2. decode(encode(trace)) == trace; any other text raises UsageError, in bounded memory.

Not here: who makes the choices (strategies.py), what the digest is taken of (driver.py).
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from shardfs.errors import UsageError

_VERSION = "1"
_CHOICES_MAX = 50_000_000
_PLAIN, _PACKED = "p", "z"


def trimmed(choices: Iterable[int]) -> tuple[int, ...]:
    """The choices without the zeros at their end (I1)."""
    kept = list(choices)
    while kept and kept[-1] == 0:
        kept.pop()
    return tuple(kept)


@dataclass(frozen=True, slots=True)
class Trace:
    """The choices of one run.

    Args:
        choices: without zeros at the end.
        digest: of the steps that the run took, 16 hexadecimal digits; empty when unknown.
    """

    choices: tuple[int, ...]
    digest: str = ""

    def __str__(self) -> str:
        return encode(self)

    @property
    def deviations(self) -> int:
        """Choices that are not the plainest."""
        return sum(choice != 0 for choice in self.choices)


def encode(trace: Trace) -> str:
    """The trace as one word of letters, digits, '-', '_' and '.'."""
    raw = bytearray()
    for choice in trace.choices:
        while choice > 127:
            raw.append(choice & 127 | 128)
            choice >>= 7
        raw.append(choice)
    packed = zlib.compress(bytes(raw), 9)
    form, body = (_PACKED, packed) if len(packed) < len(raw) else (_PLAIN, bytes(raw))
    text = base64.urlsafe_b64encode(body).decode().rstrip("=")
    return ".".join((_VERSION, form + text, trace.digest))


def decode(text: str) -> Trace:
    """The trace that `encode` made this word of.

    Raises:
        UsageError: it did not.
    """
    parts = text.split(".")
    if len(parts) != 3 or parts[0] != _VERSION or parts[1][:1] not in (_PLAIN, _PACKED):
        raise UsageError(f"{text[:40]!r} is not a schedule of this version")
    body, digest = parts[1][1:], parts[2]
    if digest and not (len(digest) == 16 and set(digest) <= set("0123456789abcdef")):
        raise UsageError("the schedule's digest is not one")
    try:
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        if parts[1][0] == _PACKED:
            unpacker = zlib.decompressobj()
            raw = unpacker.decompress(raw, _CHOICES_MAX)
            if not unpacker.eof:
                raise UsageError("the schedule is cut short, or too long")
    except (binascii.Error, ValueError, zlib.error) as error:
        raise UsageError(f"the schedule is damaged: {error}") from error
    return Trace(trimmed(_numbers(raw)), digest)


def _numbers(raw: bytes) -> Iterable[int]:
    number = shift = 0
    for byte in raw:
        number |= (byte & 127) << shift
        if byte & 128:
            shift += 7
            if shift > 28:
                raise UsageError("the schedule has a choice beyond all bounds")
        else:
            yield number
            number = shift = 0
    if shift:
        raise UsageError("the schedule ends within a choice")
