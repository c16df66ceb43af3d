"""How `shardfs inspect` shows a structure: fields in a table, hex beside it, troubles below.

Role: prints a dissection, or turns it into JSON.

Not here: taking structures apart (engine/dissection.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import click

from shardfs.cli.output import print_line, print_row, printable
from shardfs.engine.dissection import Dissection

_WIDTHS: Final = (-7, -6, 20, 20, 20)
_VALUE_LENGTH_MAX: Final = 64
_HEX_BYTES_A_LINE: Final = 16
_HEX_LINES_OF_A_FIELD: Final = 4


def print_dissection(dissection: Dissection, *, with_hex: bool) -> None:
    """The fields, then what does not hold."""
    print_row(("OFFSET", "BYTES", "STRUCTURE", "FIELD", "VALUE"), _WIDTHS)
    for each in dissection.fields:
        cells = (str(each.offset), str(each.length), each.structure, each.name)
        print_row((*cells, _shortened(printable(each.value))), _WIDTHS)
        if with_hex:
            data = dissection.data[each.offset : each.offset + each.length]
            for line in hex_lines(data, each.offset, lines_max=_HEX_LINES_OF_A_FIELD):
                click.echo(f"  {line}")
    print_troubles(dissection)


def _shortened(text: str) -> str:
    return text if len(text) <= _VALUE_LENGTH_MAX else f"{text[:_VALUE_LENGTH_MAX]}..."


def print_troubles(dissection: Dissection) -> None:
    """What does not hold, one line each."""
    for trouble in dissection.troubles:
        print_line(f"! {printable(trouble)}")
    if dissection.is_cut:
        click.echo("! there is more than is shown")


def dissection_as_json(dissection: Dissection, *, with_hex: bool) -> dict[str, Any]:
    """Fields and troubles for programs."""
    fields = []
    for each in dissection.fields:
        values = each._asdict()
        if with_hex:
            values["hex"] = dissection.data[each.offset : each.offset + each.length].hex()
        fields.append(values)
    return {"fields": fields, "troubles": dissection.troubles, "is_cut": dissection.is_cut}


def hex_lines(data: bytes, offset: int, *, lines_max: int | None = None) -> Iterator[str]:
    """A hex dump: offset, bytes, and what of them is ASCII."""
    size = _HEX_BYTES_A_LINE
    for number, at in enumerate(range(0, len(data), size)):
        if number == lines_max:
            yield f"... and {len(data) - at} bytes more"
            return
        part = data[at : at + size]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        yield f"{offset + at:08x}  {part.hex(' '):<{3 * size}} {text}"
