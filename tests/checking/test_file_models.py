"""The models of names and contents, by examples: what a reader sees, and what a crash may leave."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from shardfs.checking.models.content_model import SHARD_BYTES, ContentModel
from shardfs.checking.models.file_model import FileModel, Found
from shardfs.checking.models.namespace_model import EXCHANGE, NOREPLACE, Kind, NamespaceModel
from shardfs.errors import FileError


def errno_of(operation: Callable[[], object]) -> int:
    """The errno with which a call fails; 0 if it does not."""
    try:
        operation()
    except FileError as error:
        return error.errno
    return 0


def names(**kinds: str) -> NamespaceModel:
    """A tree of files, directories and links, made in this order; "__" stands for "/"."""
    model = NamespaceModel()
    for name, kind in kinds.items():
        path = name.replace("__", "/")
        match kind:
            case "file":
                model.create(path)
            case "directory":
                model.mkdir(path)
            case target:
                model.symlink(path, target)
    return model


# --- names


def test_paths_lead_through_directories_only() -> None:
    model = names(a="file", d="directory", l="d")
    assert errno_of(lambda: model.create("a/x")) == errno.ENOTDIR
    assert errno_of(lambda: model.create("l/x")) == errno.ENOTDIR
    assert errno_of(lambda: model.create("none/x")) == errno.ENOENT
    assert errno_of(lambda: model.create("a")) == errno.EEXIST
    assert model.list("") == ["a", "d", "l"]
    assert errno_of(lambda: model.list("a")) == errno.ENOTDIR


def test_what_can_be_removed() -> None:
    model = names(a="file", d="directory", d__a="file")
    assert errno_of(lambda: model.unlink("d")) == errno.EISDIR
    assert errno_of(lambda: model.rmdir("a")) == errno.ENOTDIR
    assert errno_of(lambda: model.rmdir("d")) == errno.ENOTEMPTY
    model.unlink("d/a")
    model.rmdir("d")
    assert model.list("") == ["a"]


@pytest.mark.parametrize(
    ("old", "new", "flags", "expected"),
    [
        ("none", "x", 0, errno.ENOENT),
        ("a", "none", EXCHANGE, errno.ENOENT),
        ("a", "b", NOREPLACE, errno.EEXIST),
        ("a", "a", NOREPLACE, errno.EEXIST),
        ("d", "d/e/x", 0, errno.EINVAL),
        ("d/e", "d", 0, errno.ENOTEMPTY),
        ("d/e", "d", EXCHANGE, errno.EINVAL),
        ("d", "a", 0, errno.ENOTDIR),
        ("a", "d", 0, errno.EISDIR),
        ("f", "d", 0, errno.ENOTEMPTY),
        ("a", "b", 0, 0),
        ("d", "f", 0, 0),
        ("d", "a", EXCHANGE, 0),
    ],
)
def test_the_rules_of_rename(old: str, new: str, flags: int, expected: int) -> None:
    model = names(a="file", b="file", d="directory", d__e="directory", f="directory")
    assert errno_of(lambda: model.rename(old, new, flags)) == expected


def test_a_rename_takes_along_what_is_below() -> None:
    model = names(a="file", d="directory", d__e="directory", d__e__x="file")
    model.rename("d", "f")
    assert sorted(model.tree.names) == ["", "a", "f", "f/e", "f/e/x"]
    model.rename("f/e", "a", EXCHANGE)
    assert sorted(model.tree.names) == ["", "a", "a/x", "f", "f/e"]


def test_two_names_of_one_file_are_both_kept() -> None:
    model = names(a="file")
    model.link("a", "b")
    before = model.moment
    model.rename("a", "b")
    assert (model.list(""), model.moment) == (["a", "b"], before)
    assert errno_of(lambda: names(d="directory").link("d", "e")) == errno.EPERM


def test_a_refused_operation_is_no_change() -> None:
    model = names(a="file")
    before = model.moment
    assert errno_of(lambda: model.remove_xattr("a", "user.x")) == errno.ENODATA
    assert errno_of(lambda: model.mkdir("a")) == errno.EEXIST
    assert model.moment == before
    model.set_xattr("a", "user.x", b"1")
    assert model.get_xattr("a", "user.x") == b"1"
    assert model.moment == before + 1


# --- contents


def test_holes_read_as_zeros() -> None:
    content = ContentModel()
    content.write(3, b"xy", 0)
    content.truncate(4, 1)
    content.truncate(6, 2)
    assert content.content == b"\0\0\0x\0\0"


def test_a_write_is_there_wholly_or_not_and_in_order() -> None:
    content = ContentModel()
    content.write(0, b"aaaa", 0)
    content.write(2, b"bbbb", 0)
    assert content.may_be(b"", 0)
    assert content.may_be(b"aaaa", 0)
    assert content.may_be(b"aabbbb", 0)
    assert not content.may_be(b"aa", 0)
    assert not content.may_be(b"\0\0bbbb", 0)
    assert not content.may_be(b"aaaa\0\0", 0)


def test_what_fsync_promised_stays() -> None:
    content = ContentModel()
    content.write(0, b"aaaa", 0)
    content.made_durable(content.last, 0)
    content.write(0, b"b", 0)
    assert not content.may_be(b"", 0)
    assert content.may_be(b"aaaa", 0)
    assert content.may_be(b"baaa", 0)


def test_shards_are_independent_and_the_size_tells_which_are_there() -> None:
    content = ContentModel()
    content.write(SHARD_BYTES - 2, b"abcd", 0)
    whole = bytes(SHARD_BYTES - 2) + b"abcd"
    assert content.may_be(whole, 0)
    assert content.may_be(whole[:SHARD_BYTES], 0)
    assert content.may_be(bytes(SHARD_BYTES) + b"cd", 0)
    assert not content.may_be(bytes(SHARD_BYTES), 0)
    assert not content.may_be(whole[:-1], 0)
    assert not content.may_be(whole + b"\0", 0)


def test_a_write_brings_the_names_before_it() -> None:
    content = ContentModel(b"", 1)
    content.write(0, b"a", 3)
    assert not content.may_be(b"a", 2)
    assert content.may_be(b"a", 3)
    assert content.may_be(b"", 3)


def test_a_truncation_comes_after_the_writes_before_it() -> None:
    content = ContentModel(b"oooo")
    content.write(0, b"nnnn", 0)
    content.truncate(2, 1)
    assert content.may_be(b"nn", 1)
    assert not content.may_be(b"oo", 1)
    assert not content.may_be(b"nnnn", 1)
    assert content.may_be(b"oooo", 0)
    assert content.may_be(b"nnnn", 0)
    assert not content.may_be(b"nnoo", 0)


# --- both


def found(model: FileModel, **contents: bytes) -> dict[str, Found]:
    """What a file system would show that has these files in its root."""
    inodes = {node: number for number, node in enumerate(model.contents, 2)}
    nodes = {path: node for tree in model.history for path, node in tree.names.items()}
    return {
        path: Found(inodes[nodes[path]], Kind.FILE, 0o644, 1, 0, {}, content)
        for path, content in contents.items()
    }


def test_replacing_a_file_shows_the_old_or_the_new_one() -> None:
    model = FileModel()
    model.create("a")
    model.write(model.file("a"), 0, b"old")
    model.keep(model.begin_sync_of_all())
    old = found(model, a=b"old")
    model.create("b")
    model.write(model.file("b"), 0, b"new")
    halves = [{**old, **found(model, b=content)} for content in (b"", b"new")]
    both_new = found(model, b=b"new")
    model.rename("b", "a")
    for state in (old, *halves, found(model, a=b"new")):
        model.after_crash(state)
    for state in ({}, both_new, found(model, a=b""), {**found(model, a=b"new"), **both_new}):
        with pytest.raises(AssertionError, match="a crash may not leave this"):
            model.after_crash(state)


def test_fsync_of_a_file_keeps_its_data_and_the_names_up_to_its_last_change() -> None:
    model = FileModel()
    for path in ("a", "b"):
        model.create(path)
        model.write(model.file(path), 0, b"data")
    model.create("c")
    model.keep(model.begin_sync(model.file("a")))
    names_up_to_the_write = found(model, a=b"data")
    for state in (
        names_up_to_the_write,
        found(model, a=b"data", b=b""),
        found(model, a=b"data", b=b"data", c=b""),
    ):
        model.after_crash(state)
    model.write(model.file("a"), 4, b"more")
    model.keep(model.begin_sync(model.file("a")))
    model.after_crash(found(model, a=b"datamore", b=b"", c=b""))
    for state in (
        names_up_to_the_write,
        found(model, a=b"data", b=b"", c=b""),
        found(model, a=b"datamore", b=b"data"),
    ):
        with pytest.raises(AssertionError, match="a crash may not leave this"):
            model.after_crash(state)


def test_fsync_of_a_directory_keeps_the_names_up_to_its_last_change() -> None:
    model = FileModel()
    model.mkdir("d")
    model.create("a")
    model.create("d/b")
    root, directory = model.directory(""), model.directory("d")
    model.rename("d/b", "c")
    model.mkdir("d/e")
    model.rename("d", "f")
    model.set_mode("c", 0o600)
    after = [model.begin_sync(node).moment for node in (root, directory, model.directory("f/e"))]
    assert after == [6, 6, 5]
    assert model.begin_sync(model.file("c")).moment == 7
    assert model.begin_sync(model.file("a")).moment == 2


def test_what_was_found_after_a_crash_is_durable() -> None:
    model = FileModel()
    model.create("a")
    model.write(model.file("a"), 0, b"data")
    after = model.after_crash(found(model, a=b"data"))
    with pytest.raises(AssertionError, match="a crash may not leave this"):
        after.after_crash({})
    with pytest.raises(AssertionError, match="a crash may not leave this"):
        after.after_crash(found(model, a=b""))


def test_going_back_undoes_what_was_refused() -> None:
    model = FileModel()
    model.create("a")
    model.write(model.file("a"), 0, b"data")
    mark, before = model.mark(), model.tree
    model.create("b")
    model.truncate(model.file("a"), 1)
    model.rename("b", "a")
    model.back_to(mark)
    assert model.tree == before
    assert model.read(model.file("a")) == b"data"
