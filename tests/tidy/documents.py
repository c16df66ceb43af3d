"""What the tests need of the documents: their tables, code blocks, links and citations.

Role: reads markdown, no more of it than docs/ uses. Every check on documents is a function from
text to a list of findings, one line each.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests.tidy.sources import REPOSITORY

DOCS = REPOSITORY / "docs"

Row = tuple[str, ...]


class Section(NamedTuple):
    """What stands under one heading, up to the next heading of any level."""

    heading: str
    text: str

    def table(self, number: int = 0) -> list[Row]:
        """The rows of a table of the section, without its head; empty if there is none."""
        tables = tables_in(self.text)
        return tables[number][1:] if number < len(tables) else []


@cache
def documents() -> dict[str, str]:
    """The text of every document, by its path below the repository."""
    return {
        str(path.relative_to(REPOSITORY)): path.read_text(encoding="utf-8")
        for path in sorted(DOCS.rglob("*.md"))
    }


def without_code(text: str) -> str:
    """The text with its fenced code blocks left out."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def sections(text: str) -> dict[str, Section]:
    """The sections of a document by their headings."""
    found = {}
    parts = re.split(r"^#+ +(.+)$", without_code(text), flags=re.MULTILINE)
    for heading, body in zip(parts[1::2], parts[2::2], strict=True):
        assert heading not in found, f"two headings {heading!r}"
        found[heading] = Section(heading, body)
    return found


def tables_in(text: str) -> list[list[Row]]:
    """Every table: its rows of cells, head first, the line of dashes left out."""
    tables: list[list[Row]] = []
    inside = False
    for line in text.splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        if not inside:
            tables.append([])
            inside = True
        cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
        row = tuple(cell.strip().replace("\\|", "|") for cell in cells)
        if not all(re.fullmatch(r":?-+:?", cell) for cell in row):
            tables[-1].append(row)
    return tables


def code_block(text: str, name: str) -> list[str]:
    """The lines of the fenced block that follows the comment `<!-- example: name -->`."""
    found = re.search(rf"<!-- example: {name} -->\n+```[a-z]*\n(.*?)\n```", text, re.DOTALL)
    assert found, f"no example {name}"
    return found[1].splitlines()


def links(text: str) -> list[str]:
    """Targets of relative links, without their fragments."""
    targets = re.findall(r"\]\(([^)\s]+)\)", without_code(text))
    paths = [target.partition("#")[0] for target in targets if "://" not in target]
    return [path for path in paths if path]


def quoted(text: str) -> list[str]:
    """What stands between single backquotes, outside of code blocks."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", without_code(text))


def resolve_link(document: str, link: str) -> Path:
    """The file that a link of a document leads to."""
    return (REPOSITORY / document).parent / link
