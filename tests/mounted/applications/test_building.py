"""A C program built on a mount: make with several jobs, generated headers, and ccache.

What make goes by is times of modification, so builds show whether those are kept in order: a
second make has nothing to do, and a changed header rebuilds what includes it and no more.
"""

from __future__ import annotations

import random
from pathlib import Path

from tests.mounted.applications.programs import need, run_in
from tests.mounted.mounts import MountedShardfs

UNITS = 10
MAKEFILE = """
CC ?= gcc
CFLAGS = -O0 -g -MMD -MP
UNITS = $(patsubst %.c,build/%.o,$(wildcard unit*.c)) build/main.o

program: $(UNITS)
\t$(CC) -o $@.new $^ && mv $@.new $@

build/%.o: %.c generated/table.h | build
\t$(CC) $(CFLAGS) -Igenerated -c -o $@ $<
\t@echo $< >>compiled

generated/table.h: table.txt
\tmkdir -p generated
\t{ echo 'static const int table[] = {'; tr '\\n' ',' <$<; echo '};'; } >$@.tmp
\tmv $@.tmp $@

build:
\tmkdir -p build

-include $(wildcard build/*.d)
"""


def write_project(folder: Path, seed: int) -> int:
    """A project of UNITS modules with a header each; what its program prints when built."""
    rng = random.Random(seed)
    folder.mkdir()
    (folder / "Makefile").write_text(MAKEFILE)
    numbers = [rng.randrange(1000) for _ in range(500)]
    (folder / "table.txt").write_text("".join(f"{number}\n" for number in numbers))
    total = 0
    for unit in range(UNITS):
        factor = rng.randrange(1, 9)
        (folder / f"unit{unit}.h").write_text(f"#define FACTOR{unit} {factor}\nint unit{unit}();\n")
        (folder / f"unit{unit}.c").write_text(
            f'#include "unit{unit}.h"\n#include "table.h"\n#include <stdio.h>\n'
            f"int unit{unit}() {{ return FACTOR{unit} * table[{unit}]; }}\n"
        )
        total += factor * numbers[unit]
    includes = "".join(f'#include "unit{unit}.h"\n' for unit in range(UNITS))
    terms = " + ".join(f"unit{unit}()" for unit in range(UNITS))
    (folder / "main.c").write_text(
        f'{includes}#include <stdio.h>\nint main() {{ printf("%d\\n", {terms}); }}\n'
    )
    return total


def make(
    project: Path, *, compiler: str = "gcc", variables: dict[str, str] | None = None
) -> list[str]:
    """Build with four jobs; what was compiled."""
    compiled = project / "compiled"
    compiled.write_text("")
    run_in(project, "make", "--no-print-directory", "-j4", f"CC={compiler}", variables=variables)
    return sorted(compiled.read_text().split())


def build_work(folder: Path, seed: int) -> None:
    """Build, build again, change a header and a source of a generated one, build from nothing."""
    need("make, gcc, libc6-dev", "make", "gcc")
    project = folder / "project"
    total = write_project(project, seed)
    everything = sorted(["main.c", *(f"unit{unit}.c" for unit in range(UNITS))])
    assert make(project) == everything
    assert int(run_in(project, "./program")) == total
    assert make(project) == []
    assert "up to date" in run_in(project, "make"), "nothing has changed"
    header = project / "unit3.h"
    header.write_text(header.read_text() + "#define MORE\n")
    assert make(project) == ["main.c", "unit3.c"], "what includes it, and no more"
    table = project / "table.txt"
    new = project / "table.new"
    new.write_text("7\n" + table.read_text())
    new.rename(table)
    assert make(project) == everything, "the generated header has changed"
    assert make(project) == []
    run_in(project, "sh", "-c", "ar rcs library.a build/*.o && ranlib library.a && strip program")
    run_in(project, "./program")


def ccache_work(folder: Path, seed: int) -> None:
    """Compile with a cache in the same folder; a second build finds everything in it."""
    need("ccache", "ccache")
    need("make, gcc, libc6-dev", "make", "gcc")
    total = write_project(folder / "project", seed)
    cache = {"CCACHE_DIR": str(folder / "cache")}
    for number in range(2):
        copy = folder / f"copy{number}"
        run_in(folder, "cp", "-r", "project", copy.name)
        base = {**cache, "CCACHE_BASEDIR": str(copy), "CCACHE_NOHASHDIR": "1"}
        assert len(make(copy, compiler="ccache gcc", variables=base)) == UNITS + 1
        assert int(run_in(copy, "./program")) == total
    words = [
        line.split()
        for line in run_in(folder, "ccache", "--print-stats", variables=cache).splitlines()
    ]
    counts = {each[0]: int(each[1]) for each in words if len(each) == 2}
    hits = counts["direct_cache_hit"] + counts["preprocessed_cache_hit"]
    assert hits >= UNITS, f"the cache has lost something: {counts}"
    assert counts["cache_miss"] <= UNITS + 1


def test_make(mounted_shardfs: MountedShardfs) -> None:
    build_work(mounted_shardfs.path, 1)


def test_ccache(mounted_shardfs: MountedShardfs) -> None:
    ccache_work(mounted_shardfs.path, 1)
