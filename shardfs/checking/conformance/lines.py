"""A case as one word, and back.

Role: the word that a failure prints, and that repeats it. "1:store:17:DIGEST" is the case that
the seed 17 makes; "1:store:17:DIGEST:OPERATIONS:CHOICES" carries what a shrunk case has of its own.

Invariants:
    I1. decode_line(encode_line(case)) == case; any other text raises UsageError, in bounded memory.

Not here: running a case (running.py), the form of choices (schedule/trace.py).
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from dataclasses import dataclass

from shardfs.checking.conformance.case import Operation, Operations
from shardfs.checking.schedule import Trace, decode, encode
from shardfs.errors import UsageError

_VERSION = "1"
_OPERATIONS_TEXT_MAX = 10_000_000
_OPERATION = re.compile(r"[a-z][a-z0-9-]*(,[0-9]{1,18})*")
_WORLD = re.compile(r"[a-z][a-z-]{0,30}")
_SEED = re.compile(r"[0-9]{1,20}")
_DIGEST = re.compile(r"([0-9a-f]{16})?")


@dataclass(frozen=True, slots=True)
class Case:
    """What to run. Without operations and choices, the seed decides both.

    Args:
        world: its name.
        seed: a whole number.
        operations: the sequence, or None for the one that the seed makes.
        choices: of the schedule, or None for those that the seed makes.
        digest: of the run that this is to repeat; empty if it is to repeat none.
    """

    world: str
    seed: int
    operations: Operations | None = None
    choices: Trace | None = None
    digest: str = ""


def encode_line(case: Case) -> str:
    """The case as one word of letters, digits and ':-_.'."""
    words = [_VERSION, case.world, str(case.seed), case.digest]
    if case.operations is not None or case.choices is not None:
        words.append("" if case.operations is None else _pack(case.operations))
        words.append("" if case.choices is None else encode(case.choices))
    return ":".join(words)


def decode_line(line: str) -> Case:
    """The case that `encode_line` made this word of.

    Raises:
        UsageError: it did not.
    """
    words = line.strip().split(":")
    if words[0] != _VERSION or len(words) not in (4, 6):
        raise UsageError(f"{line[:40]!r} is not a line that replays a case of this version")
    _, world, seed, digest, *rest = words
    if not (_WORLD.fullmatch(world) and _SEED.fullmatch(seed) and _DIGEST.fullmatch(digest)):
        raise UsageError(f"the world, the seed or the digest in {line[:60]!r} is not one")
    packed, choices = rest or ("", "")
    return Case(
        world,
        int(seed),
        _unpack(packed) if packed else None,
        decode(choices) if choices else None,
        digest,
    )


def _pack(operations: Operations) -> str:
    text = ";".join(",".join((each.name, *map(str, each.arguments))) for each in operations)
    packed = zlib.compress(text.encode(), 9)
    return "z" + base64.urlsafe_b64encode(packed).decode().rstrip("=")


def _unpack(word: str) -> Operations:
    try:
        body = word[1:] + "=" * (-len(word[1:]) % 4)
        packed = base64.b64decode(body, altchars=b"-_", validate=True)
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(packed, _OPERATIONS_TEXT_MAX).decode()
    except (binascii.Error, ValueError, zlib.error) as error:
        raise UsageError(f"the operations are damaged: {error}") from error
    if word[0] != "z" or not unpacker.eof:
        raise UsageError("the operations are cut short, or too many")
    operations = []
    for part in text.split(";") if text else ():
        if not _OPERATION.fullmatch(part):
            raise UsageError(f"{part[:40]!r} is not an operation")
        name, *arguments = part.split(",")
        operations.append(Operation(name, tuple(map(int, arguments))))
    return tuple(operations)
