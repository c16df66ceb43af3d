"""Runs Swift's programs with a swift.conf that is not in /etc/swift.

Usage: run_swift.py SWIFT_CONF serve MODULE CONF
       run_swift.py SWIFT_CONF once MODULE CONF... [-- MODULE CONF...]...

Only Swift's servers take its folder from their configuration; its daemons look in /etc/swift,
unless the constant is another before they are loaded.

`once` runs one pass of each daemon: the configurations of a module side by side, one module after
the other. Loading Swift takes longer than a pass over a small disk does, so it is loaded once, and
each pass is a child of that process.
"""

from __future__ import annotations

import importlib
import os
import sys
from itertools import groupby
from typing import Any


def run_main(module: str, conf: str, *arguments: str) -> None:
    """Run a program of Swift in this process."""
    sys.argv = [module, conf, "-v", *arguments]
    importlib.import_module(module).main()


def run_side_by_side(module: str, confs: list[str]) -> int:
    """One pass of a daemon for each configuration; how many failed."""
    importlib.import_module(module)
    children = []
    for conf in confs:
        child = os.fork()
        if not child:
            status = 1
            try:
                run_main(module, conf, "--once")
                status = 0
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 1
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    return sum(os.waitpid(child, 0)[1] != 0 for child in children)


def main() -> None:
    """See the usage above."""
    swift_conf, what, *words = sys.argv[1:]
    utils: Any = importlib.import_module("swift.common.utils")
    utils.SWIFT_CONF_FILE = swift_conf
    if what == "serve":
        run_main(*words)
        return
    failures = 0
    for is_gap, group in groupby(words, key=lambda word: word == "--"):
        if not is_gap:
            module, *confs = group
            failures += run_side_by_side(module, confs)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
