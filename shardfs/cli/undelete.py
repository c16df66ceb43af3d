"""The `shardfs undelete` command: deleted files that the device still holds.

Role: scans an unmounted device, lists what it finds, or writes one file of it elsewhere.

Not here: what is found (fuse/undelete.py).
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import partial
from typing import TypeVar

import click
import trio

from shardfs.cli.errors import FINDING, SUCCESS
from shardfs.cli.examples import examples
from shardfs.cli.options import PATH, json_option
from shardfs.cli.output import print_json, print_row, printable, size_text
from shardfs.cli.progress import progress
from shardfs.cli.unmounted import unmounted_device
from shardfs.engine.block_device import BlockDevice, open_device
from shardfs.engine.careful_scan import LostRange
from shardfs.engine.options import StoreOptions
from shardfs.engine.salvage import scan_device
from shardfs.engine.store import Store
from shardfs.errors import UsageError
from shardfs.fuse.frame_index import FrameIndex
from shardfs.fuse.undelete import DeletedFile, bring_back, deleted_files

T = TypeVar("T")
_WIDTHS = (-10, -10, 8)


@examples(
    {
        "shardfs undelete --list /dev/sdb1": "what is still there",
        "shardfs undelete /dev/sdb1 /photos/cat.jpg cat.jpg": "bring one back",
        "shardfs undelete /dev/sdb1 inode:1234 cat.jpg": "one whose name is not known",
    }
)
@click.command()
@click.argument("device", type=PATH)
@click.argument("path", type=PATH, required=False)
@click.argument("dest", type=PATH, required=False)
@click.option("--list", "is_list", is_flag=True, help="List the deleted files; so without PATH.")
@json_option
def undelete(device: str, path: str | None, dest: str | None, is_list: bool, as_json: bool) -> int:
    """List deleted files whose data is still on DEVICE, or write the one at PATH to DEST.

    What is deleted stays on the device until its extent is reclaimed: when space is wanted, or the
    mount has nothing else to do. DEVICE must not be mounted, and is not changed. DEST is a new
    file; by default, one with the same name in the current directory.

    Exit status 1 if the file is not whole any more, or if the tree is damaged: a file of which it
    cannot be read whether it is deleted is not listed.
    """
    if is_list and path is not None:
        raise UsageError("--list takes no PATH")
    real = unmounted_device(device)
    files, lost = trio.run(partial(_with_index, real, _listed))
    for each in lost:
        click.echo(f"shardfs: what the tree says of some files is lost: {each}", err=True)
    if path is None:
        if as_json:
            print_json([asdict(each) for each in files])
        else:
            _print(files)
        return FINDING if lost else SUCCESS
    file = _chosen(files, path)
    target = dest if dest is not None else os.path.basename(file.path or f"inode-{file.ino}")
    missing = trio.run(partial(_with_index, real, partial(_written, file, target)))
    if as_json:
        print_json([{**asdict(file), "is_whole": not missing}])
    else:
        rest = f", {missing} bytes of it damaged or missing, and zeros now" if missing else ""
        click.echo(printable(f"{file.path or file.ino} -> {target}{rest}"))
    return FINDING if missing else SUCCESS


async def _with_index(
    path: str, task: Callable[[BlockDevice, Store, FrameIndex], Awaitable[T]]
) -> T:
    device = open_device(path, read_only=True)
    try:
        options = StoreOptions(read_only=True, background=False, tolerant=True)
        async with Store.open(device, options=options) as store:
            with FrameIndex() as index, progress("looking for frames") as bar:
                async for found in scan_device(device, bar.show):
                    index.add(found)
                index.finish(store.identity.store_id)
                return await task(device, store, index)
    finally:
        device.close()


async def _listed(
    _device: BlockDevice, store: Store, index: FrameIndex
) -> tuple[list[DeletedFile], list[str]]:
    """The deleted files, and what of the tree cannot be read."""
    lost: list[LostRange] = []
    files = [file async for file in deleted_files(store, index, lost)]
    return files, list(dict.fromkeys(each.trouble for each in lost))


async def _written(
    file: DeletedFile, target: str, device: BlockDevice, _store: Store, index: FrameIndex
) -> int:
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW
    try:
        descriptor = os.open(target, flags, 0o600)
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}") from error
    try:
        content, _ = await bring_back(device, index, file.ino, descriptor)
    finally:
        os.close(descriptor)
    return content.missing_bytes + sum(end - start for start, end in content.damaged)


def _chosen(files: list[DeletedFile], path: str) -> DeletedFile:
    """The file that the user named; of several with one name the one deleted last."""
    if path.startswith("inode:"):
        found = [each for each in files if str(each.ino) == path.removeprefix("inode:")]
    else:
        found = [each for each in files if each.path == "/" + path.lstrip("/") or each.path == path]
    if not found:
        raise UsageError(f"nothing is left of a deleted {path}; see: shardfs undelete --list")
    return found[-1]


def _print(files: list[DeletedFile]) -> None:
    print_row(("INODE", "SIZE", "LEFT", "PATH"), _WIDTHS)
    for file in files:
        size = size_text(file.size) if file.size is not None else "?"
        left = "all" if file.is_whole else size_text(file.found_bytes)
        shown = printable(file.path) if file.path is not None else f"inode:{file.ino}"
        print_row((str(file.ino), size, left, shown), _WIDTHS)
    click.echo(f"{len(files)} deleted files")
