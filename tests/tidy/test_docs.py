"""The documents tell the truth: format tables, stored numbers, symbols, links, tests, limits.

Role: docs/ is checked like code. A change of a structure, a renamed function, a test that is gone
or a limit with another value fails here until the document says so too.

A name between backquotes such as `scheduler.Scheduler` is a citation: it is looked up below
shardfs and its rooms. `chunks.I2` cites a numbered invariant of a module's docstring.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable
from functools import cache

import click
import pytest

from shardfs import limits
from shardfs.cli.main import group
from shardfs.engine import layout
from shardfs.fuse import keys, records
from tests.tidy.documents import (
    Row,
    Section,
    code_block,
    documents,
    links,
    quoted,
    resolve_link,
    sections,
    tables_in,
)
from tests.tidy.sources import PACKAGE, REPOSITORY, Module, package_modules, sample
from tests.tidy.test_imports import ENGINE_ORDER, internal_imports

FORMAT = "docs/format.md"
ROOMS = ("", "engine.", "fuse.", "checking.", "cli.")
CITATION = re.compile(r"[a-z_][a-z_0-9]*(?:\.[A-Za-z_][A-Za-z_0-9]*)+")
# What looks like a citation and is none: file names, other people's modules, xattr namespaces.
FILE_ENDINGS = frozenset(
    {"cfg", "img", "json", "log", "md", "py", "service", "shardfs", "sock", "toml"}
)
FOREIGN = frozenset(
    {"click", "hypothesis", "pytest", "pyfuse3", "rbloom", "sortedcontainers", "trio", "xxhash"}
    | {"security", "system", "trusted", "user"}
    | sys.stdlib_module_names
)
UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "PiB": 1 << 50, "EiB": 1 << 60}


# --- structures and stored numbers -------------------------------------------------------------


def tables_of_the_code() -> list[layout.Table]:
    """Every structure on the device: the engine's and the file system's."""
    own = [each for each in vars(records).values() if isinstance(each, layout.Table)]
    return [*layout.TABLES, *own]


def check_structure(table: layout.Table, section: Section | None) -> list[str]:
    """Differences between a structure in the code and its table in the document."""
    if section is None:
        return [f"{FORMAT}: no heading for the structure {table.name!r}"]
    wanted = [
        (str(offset), str(size), name, meaning) for offset, size, name, meaning in table.describe()
    ]
    told = section.table()
    where = f"{FORMAT}: {table.name}"
    findings = [f"{where}: not in the document: {row}" for row in wanted if row not in told]
    findings += [f"{where}: not in the code: {row}" for row in told if row not in wanted]
    if not findings and told != wanted:
        findings.append(f"{where}: the fields are in another order")
    if not re.search(rf"^{table.size} bytes\b", section.text, re.MULTILINE):
        findings.append(f"{where}: say that it has {table.size} bytes")
    return findings


def stored_numbers() -> dict[str, dict[str, int]]:
    """Every enumeration that is stored, by the heading under which it is described."""
    enums = (layout.Kind, layout.ExtentState, layout.Stream, layout.Tag, layout.RecordKind)
    numbers = {enum.__name__: {each.name: int(each) for each in enum} for enum in enums}
    flag = layout.SUPERBLOCK_CLEAN.bit_length() - 1
    numbers["Superblock flags"] = {"SUPERBLOCK_CLEAN": flag}
    numbers["Key prefixes"] = {
        name: value[0] for name, value in vars(keys).items() if name.endswith("_PREFIX")
    }
    return numbers


def check_numbers(name: str, numbers: dict[str, int], section: Section | None) -> list[str]:
    """Differences between an enumeration in the code and its table in the document."""
    if section is None:
        return [f"{FORMAT}: no heading for {name}"]
    told = {row[1]: int(row[0], 0) for row in section.table()}
    return [] if told == numbers else [f"{FORMAT}: {name}: {told}, in the code {numbers}"]


def test_structures() -> None:
    found = sections(documents()[FORMAT])
    tables = tables_of_the_code()
    assert len(tables) >= 18
    assert len({table.name for table in tables}) == len(tables)
    findings = []
    for table in tables:
        findings += check_structure(table, found.get(table.name))
    assert findings == []


def test_every_table_of_the_engine_is_listed() -> None:
    tables = [each for each in vars(layout).values() if isinstance(each, layout.Table)]
    assert sorted(each.name for each in tables) == sorted(each.name for each in layout.TABLES)


def test_stored_numbers() -> None:
    found = sections(documents()[FORMAT])
    findings = []
    for name, numbers in stored_numbers().items():
        findings += check_numbers(name, numbers, found.get(name))
    assert findings == []


def test_no_structure_without_code() -> None:
    known = {table.name for table in tables_of_the_code()}
    told = {
        section.heading
        for section in sections(documents()[FORMAT]).values()
        for table in tables_in(section.text)
        if table[0] == ("offset", "size", "field", "meaning")
    }
    assert told == known


# --- symbols -----------------------------------------------------------------------------------


def _names_of(body: Iterable[ast.stmt]) -> dict[str, ast.stmt]:
    names: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names[node.name] = node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names[node.target.id] = node
        elif isinstance(node, ast.Assign):
            names.update((each.id, node) for each in node.targets if isinstance(each, ast.Name))
    return names


def _members(node: ast.stmt) -> set[str]:
    """Names below a class: methods, fields, and what its methods set on self."""
    if not isinstance(node, ast.ClassDef):
        return set()
    members = set(_names_of(node.body))
    for inner in ast.walk(node):
        if (
            isinstance(inner, ast.Attribute)
            and isinstance(inner.ctx, ast.Store)
            and isinstance(inner.value, ast.Name)
            and inner.value.id == "self"
        ):
            members.add(inner.attr)
    return members


def _is_invariant(module: Module, name: str) -> bool:
    docstring = ast.get_docstring(module.tree) or ""
    return bool(re.search(rf"^\s+{name}\b", docstring, re.MULTILINE))


def _resolves_in(module: Module, rest: list[str]) -> bool:
    if not rest:
        return True
    if len(rest) == 1 and re.fullmatch(r"I\d+", rest[0]):
        return _is_invariant(module, rest[0])
    names = _names_of(module.tree.body)
    if rest[0] not in names:
        return False
    return len(rest) == 1 or (len(rest) == 2 and rest[1] in _members(names[rest[0]]))


def resolves(citation: str, modules: Iterable[Module]) -> bool:
    """Whether a dotted name is a module, something in one, or a numbered invariant of one."""
    by_name = {module.name: module for module in modules}
    parts = citation.split(".")
    if parts[0] == PACKAGE:
        parts = parts[1:]
    for room in ROOMS:
        for count in range(1, len(parts) + 1):
            module = by_name.get(f"{PACKAGE}.{room}{'.'.join(parts[:count])}")
            if module is not None and _resolves_in(module, parts[count:]):
                return True
    return False


def check_citations(name: str, text: str, modules: Iterable[Module]) -> list[str]:
    """Cited names that are not in the code."""
    modules = tuple(modules)
    findings = []
    for span in quoted(text):
        citation = span.removesuffix("()")
        parts = citation.split(".")
        if not CITATION.fullmatch(citation) or parts[-1] in FILE_ENDINGS:
            continue
        if not resolves(citation, modules) and parts[0] not in FOREIGN:
            findings.append(f"{name}: `{span}` is not in the code")
    return findings


def test_citations() -> None:
    findings = []
    for name, text in documents().items():
        findings += check_citations(name, text, package_modules())
    assert findings == []


def test_documents_cite_the_code() -> None:
    cited = [span for text in documents().values() for span in quoted(text)]
    assert sum(resolves(span, package_modules()) for span in set(cited)) > 40


# --- import order, commands ---------------------------------------------------------------------


def test_import_order() -> None:
    """The order in docs/design.md is the one that is enforced, for the modules that exist."""
    prefix = f"{PACKAGE}.engine."
    existing = {module.name.removeprefix(prefix) for module in package_modules()}
    rows = [[name for name in row if name in existing] for row in ENGINE_ORDER]
    told = [line.split() for line in code_block(documents()["docs/design.md"], "engine-order")]
    assert told == [row for row in rows if row]


def test_import_order_of_files() -> None:
    """The same for the room of files, where the document's list is the only one."""
    rows = [line.split() for line in code_block(documents()["docs/design.md"], "fuse-order")]
    place = {name: number for number, row in enumerate(rows) for name in row}
    prefix = f"{PACKAGE}.fuse."
    findings = []
    for module in package_modules():
        name = module.name.removeprefix(prefix)
        if name == module.name:
            continue
        if name not in place:
            findings.append(f"docs/design.md: no place for {module.name}")
        for target, node in internal_imports(module, package_modules()):
            other = target.removeprefix(prefix)
            if other != target and place.get(other, -1) >= place.get(name, 0):
                findings.append(f"{module.at(node)}: imports {other}, which is not above it")
    assert findings == []


def commands_of_the_code() -> set[str]:
    """Every command, subcommands as "group command"; a group that does something by itself too."""
    names = set()
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            names |= {f"{name} {inner}" for inner in command.commands}
        if not isinstance(command, click.Group) or command.invoke_without_command:
            names.add(name)
    return names


def test_commands() -> None:
    rows = sections(documents()["docs/operations.md"])["Commands"].table()
    told = {" ".join(re.findall(r"^`shardfs ([a-z-]+(?: [a-z]+)?)", row[0])) for row in rows}
    assert told == commands_of_the_code()


# --- links and tests ---------------------------------------------------------------------------


def check_links(name: str, text: str) -> list[str]:
    """Relative links to files that do not exist."""
    missing = [link for link in links(text) if not resolve_link(name, link).exists()]
    return [f"{name}: the link to {link} leads nowhere" for link in missing]


@cache
def _test_functions(path: str) -> frozenset[str]:
    tree = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
    return frozenset(_names_of(tree.body))


def check_test_paths(name: str, text: str) -> list[str]:
    """Cited tests, files or `file::test`, that do not exist."""
    findings = []
    for span in quoted(text):
        path, _, function = span.partition("::")
        if not re.fullmatch(r"(?:tests|scripts|shardfs|docs)/[\w./-]*", path):
            continue
        if not (REPOSITORY / path).exists():
            findings.append(f"{name}: {path} does not exist")
        elif function and function not in _test_functions(path):
            findings.append(f"{name}: {path} has no {function}")
    return findings


def test_links() -> None:
    texts = {**documents(), "README.md": (REPOSITORY / "README.md").read_text(encoding="utf-8")}
    assert [finding for name, text in texts.items() for finding in check_links(name, text)] == []


def test_cited_paths() -> None:
    findings = []
    for name, text in documents().items():
        findings += check_test_paths(name, text)
    assert findings == []


def test_every_edge_and_every_crash_state_has_a_test() -> None:
    found = sections(documents()["docs/crash-consistency.md"])
    for heading in ("Ordering edges", "Crash states"):
        rows = found[heading].table()
        assert len(rows) >= 8, heading
        assert [row for row in rows if not re.search(r"`tests/[\w./]+", row[-1])] == []


def test_index_names_every_document() -> None:
    text = documents()["docs/index.md"]
    assert len(text.splitlines()) <= 40
    written = {name.removeprefix("docs/") for name in documents() if name != "docs/index.md"}
    decisions = {name for name in written if name.startswith("decisions/")}
    assert [name for name in sorted(written - decisions) if name not in text] == []
    assert not decisions or "decisions" in links(text)


# --- limits ------------------------------------------------------------------------------------


def value_of(words: str) -> float:
    """The number that a cell such as "4 KiB", "2^60", "2.0 s" or "256" means."""
    match = re.fullmatch(r"([\d,.]+)(?:\^(\d+))?(?: (?:- (\d+)|([A-Za-z]+)))?", words)
    assert match, f"no number: {words!r}"
    base, power, minus, unit = match.groups()
    value = float(base.replace(",", ""))
    if power:
        value **= int(power)
    return value * UNITS.get(unit or "", 1) - int(minus or 0)


def check_limits(name: str, rows: Iterable[Row]) -> list[str]:
    """Rows (meaning, value, `limits.NAME`) whose value is not the code's."""
    findings = []
    for row in rows:
        symbol = re.search(r"`limits\.(\w+)`", row[-1])
        if symbol and value_of(row[1]) != getattr(limits, symbol[1], None):
            findings.append(f"{name}: {row[1]} for limits.{symbol[1]}")
    return findings


def test_limits() -> None:
    rows = sections(documents()["docs/operations.md"])["Limits"].table()
    assert len(rows) >= 10
    assert check_limits("docs/operations.md", rows) == []


# --- the checks themselves ---------------------------------------------------------------------

GOOD_STRUCTURE = """8 bytes.

| offset | size | field | meaning |
|---:|---:|---|---|
| 0 | 4 | extent | which \\| one |
| 4 | 4 | epoch | when |
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        ("| 4 | 4 | epoch", "| 4 | 2 | epoch"),
        ("| 4 | 4 | epoch", "| 5 | 4 | epoch"),
        ("epoch | when", "epoch | then"),
        ("| 4 | 4 | epoch | when |\n", ""),
        ("| 4 | 4 | epoch | when |\n", "| 4 | 4 | epoch | when |\n| 8 | 1 | more | of it |\n"),
        ("8 bytes.", "9 bytes."),
    ],
)
def test_a_wrong_structure_is_found(old: str, new: str) -> None:
    table = layout.Table("pair", (("extent", "I", "which | one"), ("epoch", "I", "when")))
    section = Section("pair", GOOD_STRUCTURE.replace(old, new) if old else GOOD_STRUCTURE)
    assert bool(check_structure(table, section)) == bool(old)
    assert check_structure(table, None) != []


def test_a_wrong_number_is_found() -> None:
    section = Section("Tag", "| value | name | meaning |\n|---|---|---|\n| 0x1 | RECORD | it |\n")
    assert check_numbers("Tag", {"RECORD": 1}, section) == []
    assert check_numbers("Tag", {"RECORD": 2}, section) != []
    assert check_numbers("Tag", {"RECORD": 1, "SHARD": 2}, section) != []
    assert check_numbers("Tag", {"RECORD": 1}, None) != []


def test_a_wrong_citation_is_found() -> None:
    source = (
        '"""A module.\n\nInvariants:\n    I1. It holds.\n"""\nLIMIT = 1\n'
        "class A:\n    x: int\n    def f(self): self.y = 1\n"
    )
    modules = [sample("shardfs.engine.chunks", source), sample("shardfs.limits", "MANY: int = 3")]
    good = "`chunks.A` `chunks.A.f()` `engine.chunks.A.x` `chunks.A.y` `chunks.LIMIT` `chunks.I1`"
    good += " `limits.MANY` `shardfs.engine.chunks` `os.preadv` `a.py` `chunks.py` `x = a.b` `A.f`"
    assert check_citations("a.md", good, modules) == []
    for bad in ("chunks.B", "chunks.A.g", "chunks.A.f.g", "chunks.I2", "heaps.A", "limits.FEW"):
        assert len(check_citations("a.md", f"see `{bad}`", modules)) == 1
    assert check_citations("a.md", "```\n`chunks.B`\n```\n", modules) == []


def test_a_wrong_path_is_found() -> None:
    here = "tests/tidy/test_docs.py"
    assert check_test_paths("a.md", f"`{here}` and `{here}::test_links`, `tests/tidy`") == []
    assert check_test_paths("a.md", "`tests/tidy/test_none.py`") != []
    assert check_test_paths("a.md", f"`{here}::test_none`") != []
    assert check_links("docs/index.md", "[a](format.md#x) [b](https://example.org) [c](#d)") == []
    assert check_links("docs/index.md", "[a](nothing.md)") != []


def test_a_wrong_limit_is_found() -> None:
    assert check_limits("a.md", [("a block", "4 KiB", "`limits.BLOCK_BYTES`")]) == []
    assert check_limits("a.md", [("links", "2^32 - 2", "`limits.LINKS_MAX`")]) == []
    assert check_limits("a.md", [("a block", "8 KiB", "`limits.BLOCK_BYTES`")]) != []
    assert check_limits("a.md", [("a block", "4,096", "`limits.NOTHING`")]) != []
