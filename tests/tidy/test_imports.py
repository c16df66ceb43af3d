"""Who imports whom: the rooms, the order inside the engine, and no cycles anywhere.

Role: the import order of docs/design.md as tables. Imports under TYPE_CHECKING and inside
functions count like any other, so a knot cannot hide.

A new engine module goes into ENGINE_ORDER, on purpose, at the place its imports allow.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable

import pytest

from tests.tidy.sources import Module, package_modules, sample

# A room may import the rooms named beside it, and itself.
ROOMS: dict[str, frozenset[str]] = {
    "": frozenset({"library"}),
    "errors": frozenset(),
    "limits": frozenset({"errors"}),
    "clock": frozenset(),
    "engine": frozenset({"errors", "limits", "clock"}),
    "fuse": frozenset({"errors", "limits", "clock", "engine"}),
    "library": frozenset({"errors", "limits", "clock", "engine", "fuse"}),
    "checking": frozenset({"errors", "limits", "clock", "engine", "fuse"}),
    "cli": frozenset({"", "errors", "limits", "clock", "engine", "fuse"}),
    "__main__": frozenset({"cli"}),
}
# One module of a room that may import what the rest of its room may not.
EXCEPTIONS: dict[str, frozenset[str]] = {
    "shardfs.cli.check": frozenset({"checking"}),
}

# Inside the engine a module may import what stands in a row above its own, never beside or below.
ENGINE_ORDER: tuple[tuple[str, ...], ...] = (
    ("layout", "health", "stats", "pacing", "options", "findings"),
    ("pieces", "recording", "reserve"),
    # Frames as bytes, no I/O: superblock records are frames as well, so it stands this early.
    ("framing",),
    ("dependency", "dissection", "frame_walk", "liveness"),
    ("claims", "images"),
    ("probe",),
    ("device", "neighbours"),
    ("device_calls", "direct_io", "kernel_requests"),
    ("async_reads", "cached_reads", "kernel_flush"),
    ("block_device",),
    ("scheduler", "recorder"),
    ("superblock_record",),
    ("superblock", "space"),
    ("superblock_check",),
    ("extent",),
    ("extent_table",),
    ("extents",),
    ("cache", "temperature"),
    ("chunks",),
    ("lsm.entry",),
    ("lsm.memtable", "lsm.filter", "lsm.delta", "lsm.set_aside", "recent_shards"),
    ("lsm.segment",),
    ("lsm.merge", "lsm.manifest", "lsm.segment_writer"),
    ("lsm.compaction", "lsm.tree"),
    ("batch", "shards"),
    ("commit",),
    ("applying",),
    ("checkpoint", "reclaim", "evacuation", "gathering", "scrub"),
    ("debts",),
    ("reclamation",),
    ("merging",),
    ("admission",),
    ("delta_log",),
    ("recovery",),
    ("opening",),
    ("maintenance", "memory", "raw_store"),
    ("figures",),
    ("lookups",),
    ("store",),
    ("careful_scan",),
    (
        "fsck",
        "mkfs",
        "salvage",
        "invariants",
        "collection",
        "occupancy",
        "places",
        "resizing",
        "tree_scrub",
    ),
    ("damage", "inventory", "rebuilding", "shrinking"),
)

# What cli commands share. Commands themselves are imported by cli.main alone.
CLI_SHARED = frozenset(
    f"shardfs.cli.{name}"
    for name in (
        *("commands", "completion_scripts", "copying_out", "errors", "examples", "extent_kinds"),
        *(
            "extent_map",
            "extent_svg",
            "heap",
            "inspect_output",
            "logs",
            "looking",
            "machine",
            "manual",
        ),
        *("interrupting", "mount_helper", "mount_preparation", "options", "output", "pages"),
        *("progress", "serving", "systemd", "top_figures", "top_view", "unmounted", "unmounting"),
        "versions",
    )
)

# Packages that only these modules or rooms may import (a prefix ending in "." names a room).
THIRD_PARTY: dict[str, tuple[str, ...]] = {
    "click": ("shardfs.cli.",),
    "rich": ("shardfs.cli.",),
    "h11": ("shardfs.fuse.exporter.",),
    "prometheus_client": ("shardfs.fuse.exporter.", "shardfs.fuse.metrics."),
    "fsspec": ("shardfs.library.filesystem.",),
    "pyfuse3": ("shardfs.fuse.", "shardfs.cli."),
    "hypothesis": ("shardfs.checking.",),
    "pytest": (),
}


def imported_names(module: Module) -> list[tuple[str, ast.AST]]:
    """Dotted names a module imports, `from a import b` as "a.b", with the node that does it."""
    names: list[tuple[str, ast.AST]] = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            names += [(alias.name, node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.name.split(".")
                drop = node.level - int(module.is_package)
                base = ".".join(parts[: len(parts) - drop] + ([base] if base else []))
            names += [(f"{base}.{alias.name}", node) for alias in node.names]
    return names


def internal_imports(module: Module, known: Iterable[Module]) -> list[tuple[str, ast.AST]]:
    """The modules of shardfs that a module imports; a name inside a module counts as the module."""
    known_names = {other.name for other in known}
    found = []
    for name, node in imported_names(module):
        if name != "shardfs" and not name.startswith("shardfs."):
            continue
        while name not in known_names and name.count(".") > 0:
            parent = name.rpartition(".")[0]
            if parent in known_names or parent == "shardfs":
                name = parent
                break
            name = parent
        found.append((name, node))
    return found


def room_of(name: str) -> str:
    return Module(name, "").room


def check_rooms(modules: Iterable[Module]) -> list[str]:
    """Imports that cross rooms against the table ROOMS."""
    modules = tuple(modules)
    findings = []
    for module in modules:
        if module.room not in ROOMS:
            findings.append(
                f"{module.name}: room {module.room!r} is not in ROOMS of tests/tidy/test_imports.py"
            )
            continue
        allowed = ROOMS[module.room] | EXCEPTIONS.get(module.name, frozenset()) | {module.room}
        for name, node in internal_imports(module, modules):
            if room_of(name) not in allowed:
                findings.append(f"{module.at(node)}: imports {name}; see ROOMS")
    return findings


def check_engine_order(modules: Iterable[Module]) -> list[str]:
    """Imports inside the engine against the table ENGINE_ORDER."""
    modules = tuple(modules)
    row_of = {name: number for number, row in enumerate(ENGINE_ORDER) for name in row}
    prefix = "shardfs.engine."
    findings = []
    for module in modules:
        # A package's own module is its door: it may show anything below it.
        if not module.name.startswith(prefix) or module.is_package:
            continue
        short = module.name.removeprefix(prefix)
        if short not in row_of:
            findings.append(
                f"{module.name}: not in ENGINE_ORDER of tests/tidy/test_imports.py; add it below"
                " everything it imports and above everything that imports it"
            )
            continue
        for name, node in internal_imports(module, modules):
            if name == "shardfs.engine" or name == "shardfs.engine.lsm":
                findings.append(f"{module.at(node)}: imports the door {name}; name the module")
            elif name.startswith(prefix):
                target = name.removeprefix(prefix)
                if target in row_of and row_of[target] >= row_of[short]:
                    findings.append(f"{module.at(node)}: {short} may not import {target}")
    return findings


def check_commands(modules: Iterable[Module]) -> list[str]:
    """Cli modules that import a command; only cli.main does."""
    modules = tuple(modules)
    findings = []
    for module in modules:
        if module.room != "cli" or module.name == "shardfs.cli.main":
            continue
        for name, node in internal_imports(module, modules):
            if name.startswith("shardfs.cli.") and name not in CLI_SHARED:
                findings.append(
                    f"{module.at(node)}: imports the command {name}; move what both need to"
                    f" one of {sorted(CLI_SHARED)}"
                )
    return findings


def check_third_party(modules: Iterable[Module]) -> list[str]:
    """Third-party packages imported outside their rooms."""
    findings = []
    for module in modules:
        for name, node in imported_names(module):
            package = name.partition(".")[0]
            places = THIRD_PARTY.get(package)
            if places is not None and not f"{module.name}.".startswith(places):
                findings.append(f"{module.at(node)}: only {places} may import {package}")
    return findings


def check_cycles(modules: Iterable[Module]) -> list[str]:
    """Modules that import each other, directly or round several corners."""
    modules = tuple(modules)
    arrows = {
        module.name: sorted({name for name, _ in internal_imports(module, modules)} - {module.name})
        for module in modules
    }
    findings: list[str] = []
    finished: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            findings.append("cycle: " + " -> ".join([*path[path.index(name) :], name]))
            return
        if name in finished:
            return
        for target in arrows.get(name, []):
            visit(target, [*path, name])
        finished.add(name)

    for name in arrows:
        visit(name, [])
    return findings


CHECKS = (check_rooms, check_engine_order, check_commands, check_third_party, check_cycles)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_package(check: object) -> None:
    assert callable(check)
    assert len(package_modules()) > 3
    assert check(package_modules()) == []


def test_engine_order_names_each_module_once() -> None:
    names = [name for row in ENGINE_ORDER for name in row]
    assert len(names) == len(set(names))


DEVICE = sample("shardfs.engine.device", "")
STORE = sample("shardfs.engine.store", "")
ENGINE = sample("shardfs.engine", "", is_package=True)
FUSE = sample("shardfs.fuse.files", "")
MODELS = sample("shardfs.checking.models", "")
MOUNT = sample("shardfs.cli.mount", "")
OTHERS = (DEVICE, STORE, ENGINE, FUSE, MODELS, MOUNT)


@pytest.mark.parametrize(
    ("check", "name", "source"),
    [
        (check_rooms, "shardfs.engine.chunks", "from shardfs.fuse import files"),
        (check_rooms, "shardfs.errors", "import shardfs.engine.device"),
        (check_rooms, "shardfs.fuse.session", "from shardfs.checking.models import Model"),
        (check_rooms, "shardfs.cli.mount", "import shardfs.checking.models"),
        (check_rooms, "shardfs.engine.chunks", "from ..fuse.files import Files"),
        (check_rooms, "shardfs.attic.thing", ""),
        (
            check_rooms,
            "shardfs.engine.chunks",
            "import typing\nif typing.TYPE_CHECKING:\n    from shardfs.fuse import files",
        ),
        (check_rooms, "shardfs.engine.chunks", "def late():\n    import shardfs.fuse.files"),
        (check_engine_order, "shardfs.engine.chunks", "from shardfs.engine.store import Store"),
        (check_engine_order, "shardfs.engine.chunks", "from shardfs.engine import store"),
        (check_engine_order, "shardfs.engine.chunks", "from shardfs.engine import Store"),
        (check_engine_order, "shardfs.engine.health", "from shardfs.engine.device import Device"),
        (check_engine_order, "shardfs.engine.novelty", ""),
        (check_commands, "shardfs.cli.info", "from shardfs.cli.mount import mount"),
        (check_commands, "shardfs.cli.info", "from shardfs.cli import mount"),
        (check_third_party, "shardfs.engine.chunks", "import pyfuse3"),
        (check_third_party, "shardfs.fuse.session", "from click import echo"),
        (check_third_party, "shardfs.clock", "import pytest"),
    ],
)
def test_a_bad_import_is_found(check: object, name: str, source: str) -> None:
    assert callable(check)
    others = [module for module in OTHERS if module.name != name]
    assert len(check([*others, sample(name, source)])) == 1


def test_a_cycle_is_found() -> None:
    modules = [
        sample("shardfs.fuse.a", "from shardfs.fuse import b"),
        sample("shardfs.fuse.b", "def late():\n    from shardfs.fuse.c import thing"),
        sample("shardfs.fuse.c", "import shardfs.fuse.a"),
        sample("shardfs.fuse.d", "import shardfs.fuse.a"),
    ]
    assert check_cycles(modules) == [
        "cycle: shardfs.fuse.a -> shardfs.fuse.b -> shardfs.fuse.c -> shardfs.fuse.a"
    ]


def test_good_imports_pass() -> None:
    modules = [
        *OTHERS,
        sample("shardfs.engine.chunks", "from shardfs.engine.device import Device"),
        sample("shardfs.cli.check", "import shardfs.checking.models\nimport click"),
        sample("shardfs.cli.main", "from shardfs.cli import mount"),
        sample("shardfs.fuse.session", "from shardfs.engine import Store\nimport pyfuse3"),
    ]
    for check in CHECKS:
        assert check(modules) == []
