"""docs/recordings.md tells the structures and numbers of a recording as the code has them."""

from __future__ import annotations

from shardfs.engine import recording
from shardfs.fuse import promises
from tests.tidy.documents import documents, sections, tables_in
from tests.tidy.test_docs import check_numbers, check_structure

TABLES = (*recording.TABLES, *promises.TABLES)
NUMBERS = (recording.RecordKind, recording.RequestKind, promises.MarkKind)


def test_structures() -> None:
    found = sections(documents()["docs/recordings.md"])
    findings = [each for table in TABLES for each in check_structure(table, found.get(table.name))]
    assert findings == []
    told = {
        section.heading
        for section in found.values()
        for table in tables_in(section.text)
        if table[0] == ("offset", "size", "field", "meaning")
    }
    assert told == {table.name for table in TABLES}


def test_stored_numbers() -> None:
    found = sections(documents()["docs/recordings.md"])
    for kind in NUMBERS:
        numbers = {each.name: int(each) for each in kind}
        assert check_numbers(kind.__name__, numbers, found.get(kind.__name__)) == []
