"""What commands print with --json is what their schemas in shardfs/cli/schemas say.

Role: every command with --json has a schema that says what each value means, and at least one
example here whose real output is validated against it.

A new command joins by its schema and a line below. In a line, {image} is an unmounted image that
the call may change, {new} and {out} are paths where nothing is, {mount} is a mount point of such an
image, {record} a recording of a mount.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest

from shardfs.cli import main
from tests.cli.commands import output_of, run
from tests.cli.samples import make_sample

SCHEMAS = files("shardfs.cli").joinpath("schemas")

CALLS: dict[str, tuple[str, ...]] = {
    "doctor": ("doctor", "doctor {image}"),
    "mkfs": ("mkfs {new} --size 32M",),
    "info": ("info {image}",),
    "df": ("df {image}",),
    "gc": ("gc {image}", "gc --now {image}"),
    "why": ("why {image} 3", "why {image} photo", "why {image} notes", "why {image} 4"),
    "fsck": ("fsck {image}", "fsck --data {image}", "fsck --repair {image}"),
    "undelete": ("undelete --list {image}",),
    "salvage": ("salvage {image} {new}",),
    "grow": ("grow {image} --size 40M",),
    "shrink": ("shrink {image} --size 28M",),
    "trim": ("trim {image}",),
    "check": ("check --sequences 1 --seed 1 --jobs 1",),
    "shards ls": ("shards ls {image}", "shards ls {image} notes"),
    "shards show": ("shards show {image} photo", "shards show {image} notes/sparse"),
    "shards verify": ("shards verify {image}", "shards verify {image} photo"),
    "extents": ("extents {image}", "extents {image} --svg {out}"),
    "map": ("map {image} photo", "map {image} notes/sparse", "map {image} link"),
    "whereis": ("whereis {image} --offset 5M", "whereis {image} --offset 0 --length 32M"),
    "lsm": ("lsm {image}",),
    "inspect super": ("inspect super {image}", "inspect super {image} --all --hex"),
    "inspect extent": ("inspect extent {image} 0", "inspect extent {image} 4"),
    "inspect chunk": ("inspect chunk {image} 4:0 --hex", "inspect chunk {image} --offset 77"),
    "inspect manifest": ("inspect manifest {image}",),
    "inspect run": ("inspect run {image}", "inspect run {image} --offset 0"),
    "inspect record": ("inspect record {image} /photo", "inspect record {image} 1"),
    "tree": ("tree {image}", "tree {image} notes --depth 1"),
    "cp-out": ("cp-out {image} / {out}",),
}
MOUNTED_CALLS: dict[str, tuple[str, ...]] = {
    "info": ("info {mount}",),
    "df": ("df {mount}",),
    "gc": ("gc {mount}", "gc --now {mount}"),
    "why": ("why {mount} photo", "why {mount} 3", "why {mount}/notes"),
    "stat": ("stat {mount}",),
    "scrub start": ("scrub start {mount} --rate 1G",),
    "scrub status": ("scrub status {mount}",),
    "scrub pause": ("scrub pause {mount}",),
    "top": ("top {mount} --once --interval 0.2",),
    "trim": ("trim {mount}",),
    "grow": ("grow {mount} --size 48M",),
    "shards ls": ("shards ls {mount}",),
    "shards show": ("shards show {mount} photo",),
    "shards verify": ("shards verify {mount} photo",),
    "extents": ("extents {mount}",),
    "map": ("map {mount}/photo", "map {mount} notes/todo"),
    "whereis": ("whereis {mount} --lba 0",),
    "lsm": ("lsm {mount}",),
    "inspect super": ("inspect super {mount}",),
    "inspect record": ("inspect record {mount} /photo",),
    "tree": ("tree {mount}",),
    "cp-out": ("cp-out {mount} notes {out}",),
    "pending": ("pending {mount}", "pending {mount}/photo"),
}
# While files on the mount are used.
BUSY_CALLS: dict[str, tuple[str, ...]] = {
    "trace": ("trace {mount} --count 3",),
}
RECORDED_CALLS: dict[str, tuple[str, ...]] = {
    "check crashes": ("check crashes {record} --states 3",),
}


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command with --json by its name."""

    def below(prefix: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        if any("--json" in each.opts for each in command.params):
            yield prefix, command
        if isinstance(command, click.Group):
            for name, inner in command.commands.items():
                yield from below(f"{prefix} {name}".strip(), inner)

    yield from below("", main.group)


def schema_of(command: str) -> dict[str, Any]:
    """The schema of a command's output (of each line, where it says "x-json-lines")."""
    text = SCHEMAS.joinpath(f"{command.replace(' ', '-')}.json").read_text(encoding="ascii")
    schema: dict[str, Any] = json.loads(text)
    return schema


def validate(command: str, output: str) -> int:
    """Check an output; how many documents it holds."""
    schema = schema_of(command)
    documents = output.splitlines() if schema.get("x-json-lines") else [output]
    for document in documents:
        jsonschema.validate(json.loads(document), schema)
    return len(documents)


def in_this_process(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command line, which may find something; its standard output."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        status = main.run(arguments)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    captured = capsys.readouterr()
    assert status in (0, 1), (arguments, status, captured.err)
    return captured.out


def places(command: str, line: str, **paths: Path) -> list[str]:
    """The words of a call, with paths filled in and --json behind the command's name."""
    words = [word.format(**paths) for word in line.split()]
    assert words[: len(command.split())] == command.split()
    return [*words, "--json"]


def undescribed(schema: dict[str, Any], where: str) -> Iterator[str]:
    """Values that the schema lets pass without a word on what they are."""
    if "description" not in schema:
        yield f"{where}: no description"
    if "properties" in schema and schema.get("additionalProperties") is not False:
        yield f"{where}: others may be there"
    for name, inner in schema.get("properties", {}).items():
        yield from undescribed(inner, f"{where}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from undescribed(schema[key], f"{where}[]")
    for number, inner in enumerate(schema.get("oneOf", ())):
        yield from undescribed(inner, f"{where}/{number}")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with files; not to be changed."""
    path = tmp_path_factory.mktemp("sample") / "sample.img"
    make_sample(path)
    return path


def test_every_command_with_json_has_a_schema_and_an_example() -> None:
    names = {name for name, _ in commands()}
    assert {name.replace(" ", "-") for name in names} == {
        each.name.removesuffix(".json") for each in SCHEMAS.iterdir()
    }
    assert names == set(CALLS) | set(MOUNTED_CALLS) | set(BUSY_CALLS) | set(RECORDED_CALLS)


@pytest.mark.parametrize("command", [name for name, _ in commands()])
def test_schemas_are_whole(command: str) -> None:
    schema = schema_of(command)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert list(undescribed(schema, command)) == []


@pytest.mark.parametrize("command", sorted(CALLS))
def test_output(
    command: str, sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, line in enumerate(CALLS[command]):
        image = tmp_path / f"{number}.img"
        shutil.copy(sample, image)
        new, out = tmp_path / "new.img", tmp_path / f"{number}.out"
        words = places(command, line, image=image, new=new, out=out)
        assert validate(command, in_this_process(words, capsys)) > 0


def test_output_on_a_mount(
    sample: Path, mountpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "mounted.img"
    shutil.copy(sample, image)
    output_of("mount", image, mountpoint)
    for command, lines in sorted(MOUNTED_CALLS.items()):
        for line in lines:
            words = places(command, line, mount=mountpoint, out=tmp_path / "out")
            assert validate(command, in_this_process(words, capsys)) > 0
    output_of("umount", mountpoint)
    assert run("fsck", image).returncode == 0


def test_output_about_a_busy_mount(
    sample: Path, mountpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, is_done = tmp_path / "mounted.img", threading.Event()
    shutil.copy(sample, image)
    output_of("mount", image, mountpoint)

    def use() -> None:
        while not is_done.wait(0.05):
            (mountpoint / "used").write_bytes(b"x")

    user = threading.Thread(target=use)
    user.start()
    try:
        for command, lines in BUSY_CALLS.items():
            for line in lines:
                words = places(command, line, mount=mountpoint)
                assert validate(command, in_this_process(words, capsys)) > 0
    finally:
        is_done.set()
        user.join()
    output_of("umount", mountpoint)


def test_output_about_a_recording(
    sample: Path, mountpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, record = tmp_path / "mounted.img", tmp_path / "record"
    shutil.copy(sample, image)
    assert run("mount", image, mountpoint, "--record", record).returncode == 0
    (mountpoint / "more").write_bytes(b"written")
    output_of("umount", mountpoint)
    for command, lines in RECORDED_CALLS.items():
        for line in lines:
            words = places(command, line, record=record)
            assert validate(command, in_this_process(words, capsys)) > 0


def test_what_is_not_in_the_schema_is_found() -> None:
    good = '{"discarded_bytes": 1}'
    assert validate("trim", good) == 1
    for bad in ('{"discarded_bytes": -1}', '{"discarded_bytes": 1, "more": 2}', "{}", "[]"):
        with pytest.raises(jsonschema.ValidationError):
            validate("trim", bad)
    assert list(undescribed({"properties": {"a": {}}}, "x")) == [
        "x: no description",
        "x: others may be there",
        "x.a: no description",
    ]
