"""Arguments and options that several commands take.

Role: how a size is written, and --json.

Not here: what single commands take.
"""

from __future__ import annotations

import re
from typing import Any, Final

import click

_SIZE: Final = re.compile(r"(\d+)\s*(?:([kKmMgGtTpP])(?:i?[bB])?|[bB])?")
_POWERS: Final = "kmgtp"


class Size(click.ParamType[int]):
    """A number of bytes, with K, M, G, T or P for powers of 1024: 512M, 4GiB, 1048576."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of bytes that the text means."""
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a size; write it like 512M or 4G", param, ctx)
        unit = (match[2] or "").lower()
        return int(match[1]) << (10 * (_POWERS.index(unit) + 1) if unit else 0)


SIZE: Final = Size()

PATH: Final = click.Path(readable=False, path_type=str)
"""Nobody asks whether it may be read: of a mount whose server has gone, access(2) says no."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
