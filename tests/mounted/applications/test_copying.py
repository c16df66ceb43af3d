"""Tools that copy trees: rsync, tar, cp, mv, zip and rclone, onto a mount, within it and back.

Each tool copies a tree with all that a file may have; then everything is compared by this test's
own listing and, where the tool can compare, by the tool.
"""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

from tests.mounted.applications.programs import need, run_in
from tests.mounted.mounts import MountedShardfs, run_command
from tests.mounted.test_trees import listing, xattrs

FILES = 150
HOLE_BYTES = 8 << 20


def write_tree(root: Path, seed: int, *, plain: bool = False) -> None:
    """A tree of files of many sizes; unless plain, with links, xattrs, holes and odd names."""
    rng = random.Random(seed)
    folders = [root]
    root.mkdir()
    for number in range(FILES // 10):
        folder = rng.choice(folders) / f"folder-{number}"
        folder.mkdir()
        folders.append(folder)
    for number in range(FILES):
        path = rng.choice(folders) / f"file-{number}"
        length = rng.choice((0, 1, 100, 4095, 4096, 4097, 50_000, 300_000))
        path.write_bytes(rng.randbytes(length))
        path.chmod(rng.choice((0o644, 0o600, 0o755, 0o444)))
        moment = rng.randrange(10**18, 17 * 10**17)
        os.utime(path, ns=(moment, moment + 1))
    if not plain:
        add_oddities(root)


def add_oddities(root: Path) -> None:
    """What a careless copy loses."""
    (root / "one").write_bytes(b"one file, three names")
    os.link(root / "one", root / "two")
    (root / "elsewhere").mkdir()
    os.link(root / "one", root / "elsewhere" / "three")
    (root / "to one").symlink_to("one")
    (root / "dangling").symlink_to("/nowhere")
    os.mkfifo(root / "fifo", 0o600)
    for name in ("new\nline", "blank ", "-rf", "ünïcödé", "quote'\"", "star*", "back\\slash"):
        (root / name).write_text(name)
    (root / os.fsdecode(b"bytes \xff\xfe")).write_bytes(b"not UTF-8")
    (root / ("n" * 255)).write_text("long")
    with (root / "holes").open("wb") as file:
        file.seek(HOLE_BYTES)
        file.write(b"end")
        file.truncate(2 * HOLE_BYTES)
    os.setxattr(root / "one", "user.kind", b"\x00\x01\xff" * 100)
    os.setxattr(root / "elsewhere", "user.folder", b"yes")
    # rsync leaves a link or FIFO that it makes in the same second as it is, with other nanoseconds.
    for path in (*root.iterdir(), root / "elsewhere" / "three", root):
        os.utime(path, ns=(10**18 + 3, 10**18 + 7), follow_symlinks=False)


def assert_equal_trees(one: Path, other: Path) -> None:
    """Names, kinds, modes, owners, times, links, xattrs and bytes."""
    assert listing(other) == listing(one)
    assert xattrs(other) == xattrs(one)
    assert linked_names(other) == linked_names(one)
    # diff calls any two FIFOs different; the listing has compared them.
    run_command("diff", "-r", "--no-dereference", "-x", "fifo", one, other)


def linked_names(root: Path) -> set[frozenset[str]]:
    """Groups of names that are one file."""
    groups: dict[int, set[str]] = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder) / name
            groups.setdefault(path.lstat().st_ino, set()).add(str(path.relative_to(root)))
    return {frozenset(names) for names in groups.values() if len(names) > 1}


RSYNC = ("rsync", "--modify-window=-1")
"""By itself it takes times within one second for equal, and leaves a folder's as it became."""


def rsync_work(folder: Path, seed: int) -> None:
    """There and back with rsync; a second run has nothing to transfer."""
    need("rsync", "rsync")
    source = folder / "source"
    write_tree(source, seed)
    for start, end in (("source", "copy"), ("copy", "back")):
        command = (*RSYNC, "-aHAX", "--numeric-ids", "--stats", f"{start}/", f"{end}/")
        run_in(folder, *command)
        said = run_in(folder, *command)
        assert "Number of regular files transferred: 0\n" in said, said
        assert "Number of created files: 0\n" in said, said
        changes = (*RSYNC, "-aHAXc", "--delete", "--itemize-changes", f"{start}/", f"{end}/")
        assert run_in(folder, *changes) == "", "checksums, links and xattrs are equal"
    assert_equal_trees(source, folder / "back")
    with (source / "holes").open("r+b") as file:
        file.write(b"changed in place")
    (source / "file-1").unlink(missing_ok=True)
    run_in(folder, *RSYNC, "-aHAX", "--delete", "--inplace", "--no-whole-file", "source/", "copy/")
    assert_equal_trees(source, folder / "copy")


def tar_and_cp_work(folder: Path, seed: int) -> None:
    """tar, cp -a and cp --sparse=always; holes stay holes."""
    need("tar", "tar")
    source = folder / "source"
    write_tree(source, seed)
    run_in(folder, "tar", "--xattrs", "--sparse", "--acls", "-cf", "all.tar", "source")
    (folder / "unpacked").mkdir()
    run_in(folder, "tar", "--xattrs", "--acls", "-C", "unpacked", "-xpf", "all.tar")
    assert_equal_trees(source, folder / "unpacked" / "source")
    run_in(folder, "tar", "--xattrs", "--compare", "-f", "all.tar")
    run_in(folder, "cp", "-a", "source", "copied")
    assert_equal_trees(source, folder / "copied")
    run_in(folder, "cp", "-a", "--sparse=always", "source", "sparse")
    assert_equal_trees(source, folder / "sparse")
    for name in ("source", "unpacked/source", "copied", "sparse"):
        found = (folder / name / "holes").stat()
        assert found.st_size == 2 * HOLE_BYTES
        assert found.st_blocks * 512 < HOLE_BYTES // 4, f"{name}: holes have been filled"
    dense = folder / "dense"
    dense.write_bytes(bytes(HOLE_BYTES))
    run_in(folder, "cp", "--sparse=always", "dense", "hollow")
    assert dense.stat().st_blocks * 512 >= HOLE_BYTES
    assert (folder / "hollow").stat().st_blocks * 512 < HOLE_BYTES // 4
    run_in(folder, "cmp", "dense", "hollow")


def zip_work(folder: Path, seed: int) -> None:
    """zip, its own test, unzip; zip renames its result into place and changes it in place."""
    need("zip, unzip", "zip", "unzip")
    write_tree(folder / "source", seed, plain=True)
    (folder / "source" / "to one").symlink_to("file-1")
    run_in(folder, "zip", "-q", "-r", "-y", "all.zip", "source")
    run_in(folder, "unzip", "-tq", "all.zip")
    run_in(folder, "unzip", "-q", "all.zip", "-d", "unpacked")
    run_in(folder, "diff", "-r", "--no-dereference", "source", "unpacked/source")
    (folder / "source" / "new").write_bytes(b"new" * 1000)
    run_in(folder, "zip", "-q", "-r", "-y", "-u", "all.zip", "source")
    run_in(folder, "zip", "-q", "-T", "all.zip")
    assert "source/new" in run_in(folder, "unzip", "-Z1", "all.zip").splitlines()


def rclone_work(folder: Path, seed: int) -> None:
    """rclone copies with several streams, and compares by checksum."""
    need("rclone", "rclone")
    write_tree(folder / "source", seed, plain=True)
    settings = {"RCLONE_CONFIG": "/dev/null", "RCLONE_CACHE_DIR": str(folder / "cache")}
    run_in(folder, "rclone", "copy", "--transfers", "4", "source", "copy", variables=settings)
    run_in(folder, "rclone", "check", "--download", "source", "copy", variables=settings)
    # As root it may read all; without, files of mode 0600 are the user's own all the same.
    run_in(folder, "rclone", "sync", "--metadata", "copy", "again", variables=settings)
    run_in(folder, "rclone", "check", "--checksum", "source", "again", variables=settings)
    run_in(folder, "rclone", "move", "again", "moved", variables=settings)
    run_in(folder, "diff", "-r", "source", "moved")


def move_work(folder: Path, seed: int) -> None:
    """mv between directories of the mount: what is moved is the same files as before."""
    source = folder / "source"
    write_tree(source, seed)
    before, links = listing(source), linked_names(source)
    inodes = {path.name: path.lstat().st_ino for path in source.iterdir()}
    (folder / "a" / "b").mkdir(parents=True)
    run_in(folder, "mv", "source", "a/b/renamed")
    assert listing(folder / "a" / "b" / "renamed") == before
    with socket.socket(socket.AF_UNIX) as listener:
        # The path of a socket may have 107 characters only.
        here = os.open(folder, os.O_PATH)
        try:
            listener.bind(f"/proc/self/fd/{here}/socket")
        finally:
            os.close(here)
    run_in(folder, "mv", "socket", "a/socket")
    assert (folder / "a" / "socket").is_socket()
    run_in(folder, "sh", "-c", "mv a/b/renamed/* .")
    for name, inode in inodes.items():
        assert (folder / name).lstat().st_ino == inode
    assert linked_names(folder) == links


def test_rsync(mounted_shardfs: MountedShardfs, tmp_path: Path) -> None:
    rsync_work(mounted_shardfs.path, 1)
    outside = tmp_path / "outside"
    copy = (*RSYNC, "-aHAX", "--numeric-ids")
    run_in(tmp_path, *copy, f"{mounted_shardfs.path}/back/", f"{outside}/")
    assert_equal_trees(mounted_shardfs.path / "back", outside)
    mounted_shardfs.remount()
    compare = (*copy, "-c", "--delete", "--itemize-changes", "--dry-run")
    assert run_in(tmp_path, *compare, f"{outside}/", f"{mounted_shardfs.path}/back/") == ""


def test_tar_and_cp(mounted_shardfs: MountedShardfs, tmp_path: Path) -> None:
    tar_and_cp_work(mounted_shardfs.path, 2)
    before = listing(mounted_shardfs.path / "copied")
    mounted_shardfs.remount()
    assert listing(mounted_shardfs.path / "copied") == before
    run_in(mounted_shardfs.path, "tar", "--xattrs", "--compare", "-f", "all.tar")


def test_zip(mounted_shardfs: MountedShardfs) -> None:
    zip_work(mounted_shardfs.path, 3)


def test_rclone(mounted_shardfs: MountedShardfs) -> None:
    rclone_work(mounted_shardfs.path, 4)


def test_mv(mounted_shardfs: MountedShardfs, tmp_path: Path) -> None:
    inside = mounted_shardfs.path / "inside"
    inside.mkdir()
    move_work(inside, 5)
    outside = tmp_path / "outside"
    write_tree(outside, 6)
    before, attributes, links = listing(outside), xattrs(outside), linked_names(outside)
    run_command("mv", outside, mounted_shardfs.path / "from outside")
    assert not outside.exists()
    mounted_shardfs.remount()
    assert listing(mounted_shardfs.path / "from outside") == before
    assert xattrs(mounted_shardfs.path / "from outside") == attributes
    assert linked_names(mounted_shardfs.path / "from outside") == links
    run_command("mv", mounted_shardfs.path / "from outside", outside)
    assert (listing(outside), xattrs(outside)) == (before, attributes)
    assert not (mounted_shardfs.path / "from outside").exists()
