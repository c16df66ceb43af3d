"""Sizes and docstrings: modules a reader takes in at once, functions that fit on a screen.

Role: the limits on length, the rule that everything public says what it does, and file names
that say what is inside.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

import pytest

from tests.tidy.sources import Module, package_modules, sample

MODULE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
NAMES_BANNED = frozenset({"utils", "util", "common", "helpers", "misc"})
# The parts of a module docstring; a sentence comes before the first of them.
TEMPLATE_KEYS = frozenset({"Role:", "Invariants:", "Ordering:", "Not"})

Function = ast.FunctionDef | ast.AsyncFunctionDef
# The contract of a method that fills in someone else's interface is written there.
BASES_WITHOUT_CONTRACT = frozenset(
    {"ABC", "Enum", "Generic", "IntEnum", "IntFlag", "NamedTuple", "Protocol", "StrEnum"}
)


def check_module_length(module: Module) -> list[str]:
    """A module over the limit."""
    lines = module.source.count("\n")
    if lines <= MODULE_LINES_MAX:
        return []
    return [f"{module.name}: {lines} lines; split it, {MODULE_LINES_MAX} is the limit"]


def check_function_length(module: Module) -> list[str]:
    """Functions over the limit, their docstrings and inner functions included."""
    findings = []
    for node in ast.walk(module.tree):
        if isinstance(node, Function):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                findings.append(
                    f"{module.at(node)}: {node.name} has {lines} lines;"
                    f" {FUNCTION_LINES_MAX} is the limit"
                )
    return findings


def check_module_docstring(module: Module) -> list[str]:
    """A module without a docstring, or one that does not begin with a sentence."""
    docstring = ast.get_docstring(module.tree)
    if not docstring:
        return [f"{module.name}: no docstring; say in one sentence what the module is"]
    first = docstring.splitlines()[0]
    words = first.split()
    if len(words) < 3 or words[0] in TEMPLATE_KEYS or not first[0].isalnum():
        return [f"{module.name}: the docstring begins with {first!r}, not with a sentence"]
    return []


def _has_other_contract(node: ast.ClassDef) -> bool:
    bases = {ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases}
    return not bases <= BASES_WITHOUT_CONTRACT


def _is_exempt(node: Function) -> bool:
    decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    # A protocol spells an attribute as a property whose body is "...".
    declares = "property" in decorators and ast.unparse(node.body[-1]) == "..."
    return declares or bool(decorators & {"overload", "override", "setter", "deleter"})


def _public_definitions(tree: ast.Module) -> Iterator[Function | ast.ClassDef]:
    for node in tree.body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        if isinstance(node, ast.ClassDef):
            yield node
            if not _has_other_contract(node):
                for inner in node.body:
                    if isinstance(inner, Function) and not inner.name.startswith("_"):
                        yield inner
        else:
            yield node


def check_public_docstrings(module: Module) -> list[str]:
    """Public functions, classes and methods that do not say what they do."""
    return [
        f"{module.at(node)}: {node.name} is public and has no docstring"
        for node in _public_definitions(module.tree)
        if not ast.get_docstring(node) and not (isinstance(node, Function) and _is_exempt(node))
    ]


def check_module_name(module: Module) -> list[str]:
    """Modules named after nothing in particular."""
    last = module.name.rpartition(".")[2]
    if last in NAMES_BANNED:
        return [f"{module.name}: name the module after what it holds"]
    return []


CHECKS: tuple[Callable[[Module], list[str]], ...] = (
    check_module_length,
    check_function_length,
    check_module_docstring,
    check_public_docstrings,
    check_module_name,
)
PROSE = '"""What this module is."""\n'
BODY = "    pass\n"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_package(check: Callable[[Module], list[str]]) -> None:
    assert len(package_modules()) > 3
    assert [finding for module in package_modules() for finding in check(module)] == []


@pytest.mark.parametrize(
    ("check", "name", "source"),
    [
        (check_module_length, "shardfs.a", "\n" * (MODULE_LINES_MAX + 1)),
        (check_function_length, "shardfs.a", "def f():\n" + BODY * FUNCTION_LINES_MAX),
        (
            check_function_length,
            "shardfs.a",
            "class A:\n    async def f(self):\n" + ("    " + BODY) * FUNCTION_LINES_MAX,
        ),
        (check_module_docstring, "shardfs.a", "import os\n"),
        (check_module_docstring, "shardfs.a", '"""Role: things."""\n'),
        (check_module_docstring, "shardfs.a", '"""chunks"""\n'),
        (check_public_docstrings, "shardfs.a", "def f():\n" + BODY),
        (check_public_docstrings, "shardfs.a", "async def f():\n" + BODY),
        (check_public_docstrings, "shardfs.a", "class A:\n" + BODY),
        (
            check_public_docstrings,
            "shardfs.a",
            'class A(Protocol):\n    """An A."""\n    def f(self): ...\n',
        ),
        (check_module_name, "shardfs.engine.utils", ""),
        (check_module_name, "shardfs.common", ""),
    ],
)
def test_a_bad_shape_is_found(check: Callable[[Module], list[str]], name: str, source: str) -> None:
    assert len(check(sample(name, source))) == 1


def test_good_shapes_pass() -> None:
    source = PROSE + "\n".join(
        [
            "def _private():\n" + BODY,
            "def _long_enough():\n" + BODY * (FUNCTION_LINES_MAX - 1),
            'class A:\n    """An A."""\n    def _f(self): ...\n',
            'class B(Interface):\n    """A B."""\n    def f(self): ...\n',
            'class C(Protocol):\n    """A C."""\n    @property\n    def size(self) -> int: ...\n',
        ]
    )
    for check in CHECKS:
        assert check(sample("shardfs.engine.good", source)) == []
