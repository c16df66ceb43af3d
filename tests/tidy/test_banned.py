"""Calls that shardfs does not make, each with what to use in its place.

Role: two tables, BANNED_NAMES by dotted name and a few checks on syntax. Names are resolved
through the module's imports, so an alias does not hide a call.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.tidy.sources import Module, package_modules, sample


@dataclass(frozen=True)
class Ban:
    """A dotted name that may be used in some places only; it covers everything below it."""

    name: str
    instead: str
    allowed: tuple[str, ...] = ()
    """Prefixes of module names, each ending in "." so that they match whole names."""
    within: str = "shardfs."
    """The ban holds in modules with this prefix."""

    def holds_in(self, module: Module) -> bool:
        name = f"{module.name}."
        return name.startswith(self.within) and not name.startswith(self.allowed or ("-",))


CLOCK = ("shardfs.clock.",)
THREADS = ("shardfs.engine.block_device.", "shardfs.library.portal.")
RAW_IO = (
    "shardfs.engine.block_device.",
    "shardfs.engine.cached_reads.",
    "shardfs.engine.device_calls.",
    "shardfs.engine.direct_io.",
    "shardfs.engine.claims.",
    "shardfs.engine.images.",
    "shardfs.engine.probe.",
    "shardfs.engine.recorder.",
)

BANNED_NAMES = (
    *(
        Ban(name, "shardfs.clock, the wall clock's only door", CLOCK)
        for name in (
            "time.time",
            "time.time_ns",
            "time.clock_gettime",
            "time.clock_gettime_ns",
            "datetime.datetime.now",
            "datetime.datetime.utcnow",
            "datetime.datetime.today",
            "datetime.date.today",
        )
    ),
    Ban("time.sleep", "trio.sleep, which other tasks and tests' clocks can follow"),
    Ban(
        "struct",
        "the tables in engine/layout.py or fuse/records.py",
        ("shardfs.engine.layout.", "shardfs.fuse.records."),
    ),
    *(
        Ban(name, "engine/block_device.py and library/portal.py, which own threads", THREADS)
        for name in ("threading", "_thread", "concurrent", "trio.to_thread", "trio.from_thread")
    ),
    Ban("asyncio", "trio"),
    Ban("multiprocessing", "subprocess, for work that must leave this process"),
    *(
        Ban(name, "engine/block_device.py, the only user of raw I/O", RAW_IO, "shardfs.engine.")
        for name in (
            "open",
            "io.open",
            "os.open",
            "os.read",
            "os.pread",
            "os.preadv",
            "os.write",
            "os.pwrite",
            "os.pwritev",
            "os.fsync",
            "os.fdatasync",
            "os.sync",
        )
    ),
    Ban("print", "the logger, or a return value the cli prints", ("shardfs.cli.",)),
    Ban("breakpoint", "a test"),
    Ban("pdb", "a test"),
    Ban("pickle", "a codec of our own: pickles run code"),
    Ban("random.seed", "a random.Random of your own, with its seed in sight"),
    *(
        Ban(f"random.{name}", "a random.Random of your own, with its seed in sight")
        for name in ("choice", "choices", "getrandbits", "randbytes", "randint", "random")
    ),
)


def _aliases(module: Module) -> dict[str, str]:
    aliases = {}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname:
                    aliases[alias.asname] = alias.name
                else:
                    top = alias.name.partition(".")[0]
                    aliases[top] = top
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return aliases


def _dotted(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = _dotted(node.value)
        return base and f"{base}.{node.attr}"
    return None


def used_names(module: Module) -> list[tuple[str, ast.AST]]:
    """Dotted names the module imports or reaches through its imports, and built-ins it calls."""
    aliases = _aliases(module)
    used: list[tuple[str, ast.AST]] = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            used += [(alias.name, node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            used += [(f"{node.module}.{alias.name}", node) for alias in node.names]
        elif isinstance(node, ast.Attribute):
            first, _, rest = (_dotted(node) or "").partition(".")
            if first in aliases:
                used.append((f"{aliases[first]}.{rest}", node))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            used.append((aliases.get(node.func.id, node.func.id), node))
    return used


def check_names(module: Module) -> list[str]:
    """Uses of a name in BANNED_NAMES, at most one a line."""
    findings: dict[str, str] = {}
    used = used_names(module)
    for ban in BANNED_NAMES:
        if ban.holds_in(module):
            for name, node in used:
                if f"{name}.".startswith(f"{ban.name}."):
                    findings[module.at(node)] = f"{module.at(node)}: {ban.name}; use {ban.instead}"
    return list(findings.values())


def check_unbounded_channels(module: Module) -> list[str]:
    """Memory channels and queues without a bound from limits.py."""
    findings = []
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func.value if isinstance(node.func, ast.Subscript) else node.func
        if (_dotted(function) or "").rpartition(".")[2] != "open_memory_channel":
            continue
        bounds = [ast.unparse(argument) for argument in node.args]
        bounds += [ast.unparse(keyword.value) for keyword in node.keywords]
        if any("inf" in bound.replace("'", '"').strip('"') for bound in bounds):
            findings.append(f"{module.at(node)}: unbounded channel; use a bound from limits.py")
    return findings


def _is_blanket(expression: ast.expr | None) -> bool:
    if expression is None:
        return True
    if isinstance(expression, ast.Tuple):
        return any(_is_blanket(element) for element in expression.elts)
    return (_dotted(expression) or "").rpartition(".")[2] in {"Exception", "BaseException"}


def _does_nothing(body: list[ast.stmt]) -> bool:
    return all(
        isinstance(statement, ast.Pass | ast.Continue)
        or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
        for statement in body
    )


def check_swallowed_exceptions(module: Module) -> list[str]:
    """Handlers that catch everything and do nothing, in either spelling; and any bare except."""
    findings = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ExceptHandler) and (
            node.type is None or (_is_blanket(node.type) and _does_nothing(node.body))
        ):
            findings.append(
                f"{module.at(node)}: swallows every exception; name the ones you expect"
            )
        if (
            isinstance(node, ast.Call)
            and (_dotted(node.func) or "").rpartition(".")[2] == "suppress"
            and any(_is_blanket(argument) for argument in node.args)
        ):
            findings.append(
                f"{module.at(node)}: suppresses every exception; name the ones you expect"
            )
    return findings


CHECKS: tuple[Callable[[Module], list[str]], ...] = (
    check_names,
    check_unbounded_channels,
    check_swallowed_exceptions,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_package(check: Callable[[Module], list[str]]) -> None:
    assert len(package_modules()) > 3
    assert [finding for module in package_modules() for finding in check(module)] == []


@pytest.mark.parametrize(
    ("check", "source"),
    [
        (check_names, "import time\nnow = time.time()"),
        (check_names, "import time as t\nnow = t.time_ns()"),
        (check_names, "from time import time"),
        (check_names, "import datetime\nnow = datetime.datetime.now()"),
        (check_names, "from datetime import datetime as d\nnow = d.now()"),
        (check_names, "import time\ntime.sleep(1)"),
        (check_names, "import struct"),
        (check_names, "from struct import pack"),
        (check_names, "import threading"),
        (check_names, "from concurrent.futures import ThreadPoolExecutor"),
        (check_names, "import trio\nasync def f():\n    await trio.to_thread.run_sync(f)"),
        (check_names, "from trio import to_thread"),
        (check_names, "async def f():\n    import asyncio"),
        (check_names, "open('/dev/sda')"),
        (check_names, "import os\nos.pread(3, 1, 0)"),
        (check_names, "print('hello')"),
        (check_names, "import random\nrandom.randint(1, 6)"),
        (check_unbounded_channels, "trio.open_memory_channel(math.inf)"),
        (check_unbounded_channels, "trio.open_memory_channel[int](float('inf'))"),
        (check_swallowed_exceptions, "try:\n    f()\nexcept:\n    g()"),
        (check_swallowed_exceptions, "try:\n    f()\nexcept Exception:\n    pass"),
        (check_swallowed_exceptions, "try:\n    f()\nexcept (OSError, BaseException):\n    ..."),
        (
            check_swallowed_exceptions,
            "for x in y:\n    try:\n        f()\n    except Exception:\n        continue",
        ),
        (check_swallowed_exceptions, "with contextlib.suppress(Exception):\n    f()"),
    ],
)
def test_a_banned_call_is_found(check: Callable[[Module], list[str]], source: str) -> None:
    assert len(check(sample("shardfs.engine.chunks", source))) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("shardfs.clock", "import time\nnow = time.time_ns()"),
        ("shardfs.engine.layout", "import struct"),
        ("shardfs.fuse.records", "import struct"),
        (
            "shardfs.engine.block_device",
            "import trio\ntrio.to_thread\nimport os\nos.pread(3, 1, 0)",
        ),
        ("shardfs.cli.info", "print('hello')\nopen('/proc/self/mounts')"),
        ("shardfs.fuse.polling", "import time\nstarted = time.perf_counter_ns()"),
        ("shardfs.engine.chunks", "import random\nchoices = random.Random(7)"),
        ("shardfs.engine.chunks", "try:\n    f()\nexcept OSError:\n    pass"),
        ("shardfs.fuse.errnos", "try:\n    f()\nexcept Exception:\n    log.exception('bug')"),
        ("shardfs.engine.chunks", "trio.open_memory_channel(limits.QUEUE_LENGTH_MAX)"),
        ("shardfs.engine.chunks", "self.time.time()\ndevice.open()"),
    ],
)
def test_allowed_calls_pass(name: str, source: str) -> None:
    for check in CHECKS:
        assert check(sample(name, source)) == []
