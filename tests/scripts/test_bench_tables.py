"""What scripts/bench makes of its figures: medians, ratios, marks, tables, documents.

Role: the pure parts. That the rows measure what they say is seen by running scripts/bench.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from tests.tidy.sources import REPOSITORY

KINDS = {"shardfs": "shardfs", "floor": "floor", "ext4": "kernel", "a": "fuse", "b": "fuse"}


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    before = set(sys.modules)
    yield importlib.import_module("bench_tables")
    for name in set(sys.modules) - before:
        if name.startswith("bench_"):
            del sys.modules[name]


def cell(*rates: float, failed: str = "", flushes: float = 0.0, fsyncs: float = 0.0) -> Any:
    return {
        "rates": list(rates),
        "failed": failed,
        "flushes": [flushes],
        "written_bytes": [4096.0],
        "fsyncs": fsyncs,
    }


def columns(**more: Any) -> dict[str, Any]:
    return {
        "shardfs": cell(100, 120, 500),
        "floor": cell(160),
        "ext4": cell(1000),
        "a": cell(90, 100, 20),
        "b": cell(60),
    } | more


def test_spread_is_not_moved_by_one_outlier(tables: ModuleType) -> None:
    spread = tables.Spread.of([100, 120, 5000])
    assert (spread.median, spread.lowest, spread.highest) == (120, 100, 5000)
    assert str(spread) == "120 (100 to 5,000)"


@pytest.mark.parametrize(
    ("figure", "text"), [(123456.7, "123,457"), (99.94, "99.9"), (1.234, "1.23")]
)
def test_numbers(tables: ModuleType, figure: float, text: str) -> None:
    assert tables.number(figure) == text


def test_ratios_are_of_medians_and_to_the_best_peer(tables: ModuleType) -> None:
    found = tables.ratios(columns(), KINDS)
    assert found.peer == pytest.approx(120 / 90)
    assert found.peer_name == "a"
    assert found.ext4 == pytest.approx(0.12)
    assert found.floor == pytest.approx(0.75)


def test_marks_that_are_missed_are_named(tables: ModuleType) -> None:
    fast = tables.ratios(columns(), KINDS)
    assert fast.misses("create 4K") == ["floor 0.75 < 0.8"]
    assert fast.misses("read 4K hot") == []
    assert fast.misses("seq read cold") == ["ext4 0.12 < 0.9"]
    slow = tables.ratios(columns(shardfs=cell(90)), KINDS)
    assert slow.misses("tar c tree") == ["best FUSE 1.00 < 1.2"]


def test_a_peer_whose_fsync_reaches_no_disk_is_no_peer_in_that_row(tables: ModuleType) -> None:
    row = columns(a=cell(90, flushes=0.1, fsyncs=1.0), b=cell(60, flushes=1.0, fsyncs=1.0))
    assert tables.breaks_promise(row["a"]) and not tables.breaks_promise(row["b"])
    assert tables.best_peer(row, KINDS) == ("b", 60)
    # A row without fsync promises nothing.
    assert not tables.breaks_promise(cell(90, flushes=0.0, fsyncs=0.0))


def test_failed_rows_are_shown_with_the_reason(tables: ModuleType) -> None:
    rows = {"create 4K": {"unit": "/s", "systems": columns(a=cell(200, failed="no | space"))}}
    assert tables.best_peer(rows["create 4K"]["systems"], KINDS) == ("b", 60)
    assert tables.failures(rows) == ["a, create 4K: no | space"]
    line = tables.rates_table(rows, KINDS).splitlines()[2]
    assert line.split(" | ")[4] == "failed"


def test_a_row_without_anything_to_compare(tables: ModuleType) -> None:
    found = tables.ratios({"shardfs": cell(5), "a": cell(failed="gone")}, KINDS)
    assert (found.peer, found.ext4, found.floor) == (None, None, None)
    assert tables.ratios({"a": cell(5)}, KINDS).peer is None


def test_tables_have_as_many_cells_in_each_line(tables: ModuleType) -> None:
    rows = {
        name: {"unit": "/s", "systems": columns(a=cell(1, failed="a|b"))}
        for name in ("durable put 4K", "ls -l cold", "ls -l new mount")
    }
    for text in (
        tables.rates_table(rows, KINDS),
        tables.spreads_table(rows, KINDS),
        tables.promises_table(rows, KINDS),
        tables.reads_table(rows, KINDS),
    ):
        counts = {line.replace("\\|", "").count("|") for line in text.splitlines()}
        assert len(counts) == 1, text


def test_what_cold_rows_have_read_is_told(tables: ModuleType) -> None:
    read = cell(100) | {"read_bytes": [4000.0, 4400.0, 90_000.0]}
    rows = {
        "create 4K": {"unit": "/s", "systems": columns(a=read)},
        "read 4K cold": {"unit": "/s", "systems": columns(a=read)},
        "read 4K new mount": {"unit": "/s", "systems": columns(a=read)},
    }
    lines = tables.reads_table(rows, KINDS).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| read 4K cold", "| read 4K new mount"]
    names = lines[0].strip("| ").split(" | ")
    assert "floor" not in names, "it has no disk"
    assert lines[2].strip("| ").split(" | ")[names.index("a")] == "4,400"
    assert lines[2].strip("| ").split(" | ")[names.index("b")] == "–", "not counted"


def test_generated_parts_are_replaced_and_nothing_else(tables: ModuleType) -> None:
    before = f"# Head\n{tables.begin_mark('x')}\nold\n<!-- x ends -->\ntail\n"
    once = tables.put_into(before, "x", "new\n")
    assert once.startswith("# Head\n") and once.endswith("<!-- x ends -->\ntail\n")
    assert "old" not in once and "\nnew\n" in once
    assert tables.put_into(once, "x", "new\n") == once
    with pytest.raises(ValueError, match="no part"):
        tables.put_into("# Head\n", "x", "new")


def test_the_document_has_the_parts_that_are_generated(tables: ModuleType) -> None:
    text = (REPOSITORY / "docs" / "performance.md").read_text(encoding="utf-8")
    for name in ("bench-peers", "bench-engine", "bench-scale"):
        assert tables.begin_mark(name) in text
        assert f"<!-- {name} ends -->" in text


def test_who_breaks_the_promise_of_a_put_breaks_every_other(tables: ModuleType) -> None:
    puts = columns(a=cell(90, flushes=0.1, fsyncs=1.0))
    # The one flush that the row needs was somebody else's.
    writes = columns(a=cell(90, flushes=2.0, fsyncs=1.0))
    rows = {
        "durable put 4K": {"unit": "/s", "systems": puts},
        "seq write+fsync": {"unit": "MiB/s", "systems": writes},
        "stat hot": {"unit": "/s", "systems": columns()},
    }
    assert tables.breakers(rows) == {"a"}
    lines = tables.rates_table(rows, KINDS).splitlines()[2:]
    assert [line.split(" | ")[4] for line in lines] == ["90.0†", "90.0†", "90.0"]
    assert [line.split(" | ")[6] for line in lines] == ["2.00 (b)", "2.00 (b)", "1.33 (a)"]


def test_what_the_kernel_answers_has_no_mark(tables: ModuleType) -> None:
    rows = {"stat again": {"unit": "/s", "systems": columns(shardfs=cell(1))}}
    assert tables.rates_table(rows, KINDS).splitlines()[2].endswith("| – |")
