"""The operations of the world of files, and random sequences of them.

Role: says what each operation's numbers mean, and generates sequences that make names collide and
that stay near sector, page, granule and shard limits. Swarm weights: each sequence leaves some
operations out and makes others frequent, so that rare mixtures come up.

Invariants:
    I1. Any numbers are an operation: they are taken modulo what there is.

Not here: what the operations do (file_client.py, file_run.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, NamedTuple

from shardfs import limits
from shardfs.checking.conformance.case import Operation, Operations
from shardfs.checking.conformance.small_limits import SMALL_TREE_PROBABILITY

PATHS: Final = (
    *("a", "b", "c", "d", "e"),
    *("d/a", "d/b", "d/c", "e/a", "e/b"),
    *("d/d", "d/d/a", "e/d", "e/d/b"),
)
"""Few, so that they collide. Any may become a file, a directory or a link."""

ROOT: Final = len(PATHS)
"""Number of the root where a directory is wanted."""
XATTRS: Final = ("user.x", "user.y", "trusted.z")
RENAME_FLAGS: Final = (0, 1, 2)
SHARD_BYTES: Final = limits.SHARD_BYTES
OFFSETS_END: Final = SHARD_BYTES + 64 * limits.KIB
LENGTHS_END: Final = 128 * limits.KIB
CLIENTS_MAX: Final = 3

_EDGES: Final = (512, 4096, 32 * limits.KIB, 64 * limits.KIB)
CRASHES: Final = ("lose all", "keep all", "subset", "torn", "within")


class Setup(NamedTuple):
    """What a sequence runs on; numbers of the operation "setup".

    Args:
        store: 0 the reference store; an engine on a device with sectors of 512 (1) or 4096 (2)
            bytes, with zones (3), hardly large enough (4), or small and always nearly full (5).
        background: 1: flusher, reaper, commits and maintenance run by themselves.
        clients: how many more than one work at a time.
        variety: 1: little may be buffered; 2: device requests overlap; 4: hardly any cache;
            8: the file system's own limits are small, so that two is many; 16: the device is an
            image file, if it has no zones; 32 (SMALL_TREE): the tree's limits are small.
    """

    store: int = 0
    background: int = 0
    clients: int = 0
    variety: int = 0


STORE_KINDS: Final = 6
SMALL: Final = (4, 5)
"""Stores with as few extents as there may be."""
FULL: Final = 5
SMALL_TREE: Final = 32
VARIETIES_END: Final = 64
CLIENT_OPERATIONS: Final = (
    "lookup",
    "read",
    "list",
    "create",
    "mkdir",
    "symlink",
    "write",
    "append",
    "truncate",
    "unlink",
    "rmdir",
    "link",
    "rename",
    "mode",
    "time",
    "xattr-set",
    "xattr-get",
    "xattr-remove",
    "fsync",
    "fsyncdir",
    "flush",
    "open",
    "handle-read",
    "handle-write",
    "handle-truncate",
    "handle-fsync",
    "close",
    "churn",
)
"""Of one client, whose number comes first; then a path or the number of an open handle."""
UPKEEP_OPERATIONS: Final = (
    "sync",
    "reap",
    "checkpoint",
    "compact",
    "reclaim",
    "gather",
    "tidy",
    "trim",
    "grow",
    "shrink",
    "stop-shrink",
    "empty",
    "sleep",
    "fault",
)
"""Of the file system as a whole, beside the clients."""
ENDINGS: Final = ("remount", "crash")
"""The file system is opened anew."""
ALPHABET: Final = ("setup", *CLIENT_OPERATIONS, *UPKEEP_OPERATIONS, *ENDINGS)

_WEIGHTS: Final = (
    dict.fromkeys(CLIENT_OPERATIONS, 1.0)
    | {"create": 3.0, "write": 5.0, "append": 2.0, "truncate": 2.5, "rename": 4.0, "mkdir": 2.0}
    | {"unlink": 2.0, "link": 1.5, "fsync": 1.5, "read": 1.5, "lookup": 0.7, "list": 0.7}
    | {"sync": 0.6, "reap": 0.5, "checkpoint": 0.3, "compact": 0.15, "reclaim": 0.3, "gather": 0.2}
    | {"sleep": 0.7, "fault": 0.4, "crash": 0.9, "remount": 0.2}
    | {"churn": 0.05, "tidy": 0.05, "trim": 0.05, "grow": 0.08, "shrink": 0.12}
    | {"stop-shrink": 0.02, "empty": 0.03}
)
_FULL_WEIGHTS: Final = {"churn": 8.0, "reclaim": 4.0, "unlink": 2.0, "truncate": 2.0, "sync": 1.5}
"""On a device that shall be nearly full."""
_COUNT_MIN, _COUNT_MAX = 15, 33
_IDIOM_PROBABILITY = 0.04
_FILLING_FILES = 3
_LIVES_MAX = 2
"""Each opening takes as long as a dozen operations."""


def generate(rng: random.Random) -> Operations:
    """A random sequence for the world of files."""
    (_, setup), *steps = _Generator(rng).sequence()
    small_tree = SMALL_TREE if rng.random() < SMALL_TREE_PROBABILITY else 0
    *others, variety = setup
    return (Operation("setup", (*others, variety + small_tree)), *steps)


class _Generator:
    """One sequence in the making; guesses which names there will be."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._setup = self._choose_setup()
        self._near_shards = rng.random() < 0.1
        self._kinds: list[dict[int, str]] = [{} for _ in range(self._setup.clients + 1)]
        self._endings = 0
        weights = _WEIGHTS | (_FULL_WEIGHTS if self._setup.store == FULL else {})
        self._weights = [
            weights[name] * rng.choice((0.0, 0.5, 1.0, 1.0, 3.0)) for name in ALPHABET[1:]
        ]

    def sequence(self) -> Operations:
        """Everything, the setup first."""
        count = self._rng.randint(_COUNT_MIN, _COUNT_MAX)
        made = [Operation("setup", self._setup)]
        if self._setup.store == FULL:
            made += self._filling()
        if not any(self._weights):
            self._weights = [1.0] * len(self._weights)
        for name in self._rng.choices(ALPHABET[1:], self._weights, k=count):
            if name in ENDINGS:
                self._endings += 1
                if self._endings > _LIVES_MAX:
                    continue
            if self._rng.random() < _IDIOM_PROBABILITY:
                made += self._idiom(self._rng.randrange(self._setup.clients + 1))
            made.append(Operation(name, self._arguments(name)))
        if not self._endings:
            made.append(Operation("crash", self._arguments("crash")))
        return tuple(made)

    def _filling(self) -> list[Operation]:
        """Two thirds of a device that shall be nearly full, half of it written again."""
        made = []
        for number in range(_FILLING_FILES):
            client = number % (self._setup.clients + 1)
            path = self.free(client, "file")
            made.append(Operation("create", (client, path)))
            made.append(Operation("churn", (client, path, 8 + self._rng.randrange(8), 40_000)))
        return made

    def _idiom(self, client: int) -> list[Operation]:
        """A few operations that programs do in a row."""
        rng = self._rng

        def step(name: str, *numbers: int) -> Operation:
            return Operation(name, (client, *numbers))

        path = self.some(client, "file")
        match rng.randrange(3):
            case 0:  # saving a file
                new = self.free(client)
                return [
                    step("create", new),
                    step("write", new, 0, self.length()),
                    step("rename", new, path, 0),
                    step(rng.choice(("fsyncdir", "list", "fsync")), self.directory(client)),
                ]
            case 1:  # starting a file afresh
                return [
                    step("write", path, self.offset(), self.length()),
                    step(rng.choice(("flush", "fsync", "lookup")), path),
                    step("truncate", path, self.offset() // 2),
                    step(rng.choice(("truncate", "append")), path, self.offset()),
                    step("read", path, 0, LENGTHS_END - 1),
                ]
            case _:  # a temporary file
                return [
                    step("open", path),
                    step("unlink", path),
                    step("handle-write", 0, self.offset(), self.length()),
                    step("handle-read", 0, 0, LENGTHS_END - 1),
                    step("close", 0),
                ]

    def _choose_setup(self) -> Setup:
        rng = self._rng
        store = rng.choices(range(STORE_KINDS), (5, 3, 1, 1, 0.3, 0.3))[0]
        background = int(rng.random() < 0.35)
        clients = rng.choices((0, 1, 2), (7, 2, 1))[0]
        small_cap = background and rng.random() < 0.2
        overlapping = 2 if rng.random() < 0.3 else 0
        uncached = 4 if rng.random() < 0.2 else 0
        small_limits = 8 if rng.random() < 0.4 else 0
        image = 16 if rng.random() < 0.5 else 0
        variety = int(small_cap) + overlapping + uncached + small_limits + image
        return Setup(store, background, clients, variety)

    def _arguments(self, name: str) -> tuple[int, ...]:
        rng = self._rng
        if name in CLIENT_OPERATIONS:
            client = rng.randrange(self._setup.clients + 1)
            return (client, *_CLIENT_ARGUMENTS[name](self, client))
        match name:
            case "sleep":
                return (rng.choice((1, 5, 5, 6)),)
            case "fault":
                return (rng.randrange(3), rng.choice((0, 0, 1, 2, 4, 8)), rng.randrange(2))
            case "crash":
                kind = rng.choices(range(len(CRASHES)), (2, 1, 3, 2, 4))[0]
                again = rng.choice((0, 0, 0, 1, 2, 3, 5))
                return (kind, rng.choice((0, 0, 1, 2, 3, 5, 8, 13)), again)
            case "grow":
                return (rng.randrange(3),)
            case "shrink":
                return rng.randrange(6), rng.choice((0, 0, 1, 2))
        return ()

    # --- arguments of the clients' operations

    def some(self, client: int, *kinds: str) -> int:
        """A path that probably stands for one of these kinds."""
        found = [path for path, kind in self._kinds[client].items() if kind in kinds]
        if not found or self._rng.random() < 0.08:
            return self._rng.randrange(len(PATHS))
        return self._rng.choice(found)

    def directory(self, client: int) -> int:
        """A path that probably stands for a directory; ROOT among them."""
        return ROOT if self._rng.random() < 0.4 else self.some(client, "directory")

    def free(self, client: int, kind: str = "") -> int:
        """A path that probably can be made; it is then taken to be of that kind."""
        kinds = self._kinds[client]
        paths = [
            number
            for number, path in enumerate(PATHS)
            if number not in kinds and self._is_directory(client, path.rpartition("/")[0])
        ]
        if not paths or self._rng.random() < 0.05:
            return self._rng.randrange(len(PATHS))
        number = self._rng.choice(paths)
        if kind:
            kinds[number] = kind
        return number

    def taken(self, client: int, *kinds: str) -> int:
        """As `some`; the path is then taken to be free."""
        number = self.some(client, *kinds)
        self._kinds[client].pop(number, None)
        return number

    def move(self, client: int) -> tuple[int, int, int]:
        """Arguments of a rename."""
        rng = self._rng
        old = self.some(client, "file", "file", "directory", "symlink")
        new = self.some(client, "file", "directory") if rng.random() < 0.6 else self.free(client)
        flags = rng.choices((0, 1, 2), (6, 1, 2))[0]
        kinds = self._kinds[client]
        if old != new and old in kinds and flags == 0:
            kinds[new] = kinds.pop(old)
        return old, new, flags

    def offset(self) -> int:
        """Where something begins, or how long it is."""
        rng = self._rng
        if self._near_shards and rng.random() < 0.4:
            return SHARD_BYTES + rng.choice((-5000, -4096, -3, -1, 0, 1, 100))
        if rng.random() < 0.35:
            return 0
        if rng.random() < 0.5:
            return rng.choice(_EDGES) + rng.choice((-1, 0, 0, 1))
        return rng.choice((rng.randrange(64), rng.randrange(6000), rng.randrange(100_000)))

    def length(self) -> int:
        """How many bytes; mostly few."""
        rng = self._rng
        if rng.random() < 0.35:
            return rng.choice(_EDGES) + rng.choice((-1, 0, 0, 1))
        return 1 + rng.choice((rng.randrange(64), rng.randrange(6000), rng.randrange(40_000)))

    def draw(self, bound: int) -> int:
        """Any number below a bound."""
        return self._rng.randrange(bound)

    def _is_directory(self, client: int, path: str) -> bool:
        return not path or self._kinds[client].get(PATHS.index(path)) == "directory"


_ANY: Final = ("file", "directory", "symlink")
_CLIENT_ARGUMENTS: Final[dict[str, Callable[[_Generator, int], tuple[int, ...]]]] = {
    "lookup": lambda g, c: (g.some(c, *_ANY),),
    "read": lambda g, c: (g.some(c, "file"), g.offset(), g.length()),
    "list": lambda g, c: (g.directory(c),),
    "create": lambda g, c: (g.free(c, "file"),),
    "mkdir": lambda g, c: (g.free(c, "directory"),),
    "symlink": lambda g, c: (g.free(c, "symlink"), g.draw(5)),
    "write": lambda g, c: (g.some(c, "file"), g.offset(), g.length()),
    "append": lambda g, c: (g.some(c, "file"), g.length()),
    "truncate": lambda g, c: (g.some(c, "file"), g.offset()),
    "unlink": lambda g, c: (g.taken(c, "file", "symlink"),),
    "rmdir": lambda g, c: (g.some(c, "directory"),),
    "link": lambda g, c: (g.some(c, "file"), g.free(c, "file")),
    "rename": lambda g, c: g.move(c),
    "mode": lambda g, c: (g.some(c, *_ANY), g.draw(512)),
    "time": lambda g, c: (g.some(c, *_ANY), g.draw(1000)),
    "xattr-set": lambda g, c: (g.some(c, *_ANY), g.draw(3), g.draw(2000)),
    "xattr-get": lambda g, c: (g.some(c, *_ANY), g.draw(3)),
    "xattr-remove": lambda g, c: (g.some(c, *_ANY), g.draw(3)),
    "fsync": lambda g, c: (g.some(c, "file"),),
    "fsyncdir": lambda g, c: (g.directory(c),),
    "flush": lambda g, c: (g.some(c, "file"),),
    "open": lambda g, c: (g.some(c, "file"),),
    "handle-read": lambda g, c: (g.draw(4), g.offset(), g.length()),
    "handle-write": lambda g, c: (g.draw(4), g.offset(), g.length()),
    "handle-truncate": lambda g, c: (g.draw(4), g.offset()),
    "handle-fsync": lambda g, c: (g.draw(4),),
    "close": lambda g, c: (g.draw(4),),
    "churn": lambda g, c: (g.some(c, "file"), 2 + g.draw(12), 512 * g.draw(128)),
}
