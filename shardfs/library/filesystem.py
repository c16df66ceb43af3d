"""Files on unmounted devices for fsspec: pandas, pyarrow and dask read `shardfs://` through it.

    pandas.read_parquet("shardfs://tables/day.parquet", storage_options={"device": "disk.img"})
    fsspec.open("shardfs://tables/day.parquet::disk.img")

Role: fsspec's words for a `Disk`. Registered as an entry point, so nothing has to be imported.

Invariants:
    I1. Opened for reading unless `writable` is asked for.
    I2. Files written in a transaction have their names at its end, one after the other, and are
        durable when it returns; until then, and if it fails, what was there before stays.

Not here: what a disk does (disk.py).
"""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Iterator
from typing import IO, Any, ClassVar

from fsspec.spec import AbstractFileSystem
from fsspec.transaction import Transaction

from shardfs.errors import UsageError
from shardfs.library.disk import Disk
from shardfs.library.volume import FileFacts


class DiskTransaction(Transaction):
    """Files that get their names at the end (I2)."""

    def complete(self, commit: bool = True) -> None:
        """Give them their names, or throw them away."""
        disk = self.fs.disk
        super().complete(commit)
        if commit:
            disk.sync()


class ShardfsFileSystem(AbstractFileSystem):
    """The files on an unmounted device or image.

    Args:
        device: a block device or an image file. In a chained URL it stands behind "::".
        writable: take changes. The device must not be open anywhere else then.
        shared: other processes may read the device at the same time, as dask's workers do; nobody
            may write to it meanwhile.
        auto_mkdir: who writes a file makes the directories above it.
        fo, target_protocol, target_options: how fsspec names the device of a chained URL.
    """

    protocol: ClassVar[str] = "shardfs"
    root_marker = "/"
    transaction_type = DiskTransaction

    def __init__(
        self,
        device: str | os.PathLike[str] | None = None,
        *,
        writable: bool = False,
        shared: bool = False,
        auto_mkdir: bool = True,
        fo: str | None = None,
        target_protocol: str | None = None,
        target_options: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        if target_protocol not in (None, "file", "local"):
            raise UsageError(f"a device is a local file, not one of {target_protocol}://")
        chosen = device if device is not None else fo
        if not chosen:
            raise UsageError(
                "say which device: shardfs://PATH::DEVICE, or storage_options={'device': DEVICE}"
            )
        super().__init__(**more)
        self._makes_directories = auto_mkdir
        self.disk = Disk(chosen, writable=writable, shared=shared)

    def close(self) -> None:
        """Make everything durable, and let go of the device. This object is of no use then."""
        self.disk.close()
        self.clear_instance_cache()

    @property
    def fsid(self) -> str:
        """Which store it is."""
        return f"shardfs_{self.disk.uuid}"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        """The path in the file system, with a slash before it and none behind."""
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        text = os.fspath(path).partition("::")[0].removeprefix("shardfs://")
        return "/" + text.strip("/")

    # --- looking

    def ls(self, path: str, detail: bool = True, **_more: Any) -> list[Any]:
        """What is in a directory; of a file, itself."""
        path = self._strip_protocol(path)
        facts = self.disk.stat(path)
        found = self.disk.scandir(path) if facts.kind == "directory" else [facts]
        answers = [self._answer(each) for each in found]
        return answers if detail else [each["name"] for each in answers]

    def info(self, path: str, **_more: Any) -> dict[str, Any]:
        """What is known of a path."""
        return self._answer(self.disk.stat(self._strip_protocol(path)))

    def created(self, path: str) -> Any:
        """When its name was given, as far as that is known: its last change."""
        return self.modified(path)

    def modified(self, path: str) -> Any:
        """When the content was last changed."""
        from datetime import UTC, datetime

        return datetime.fromtimestamp(self.info(path)["mtime"], tz=UTC)

    def _answer(self, facts: FileFacts) -> dict[str, Any]:
        answer = {
            "name": facts.path,
            "size": facts.size,
            "type": facts.kind,
            "islink": facts.kind == "link",
            "ino": facts.ino,
            "mode": facts.mode,
            "nlink": facts.nlink,
            "uid": facts.uid,
            "gid": facts.gid,
            "mtime": facts.mtime_ns / 1e9,
            "created": facts.ctime_ns / 1e9,
        }
        if facts.kind == "link":
            answer["destination"] = facts.target
            try:
                real = self.disk.stat(facts.path)
            except OSError:
                return answer  # it leads nowhere
            answer |= {"size": real.size, "type": real.kind}
        elif facts.kind == "directory":
            answer["size"] = 0
        return answer

    # --- content

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: Any = None,
        **_more: Any,
    ) -> IO[Any]:
        path = self._strip_protocol(path)
        if mode[0] in "wxa":
            self._prepare(path)
        if not autocommit and mode[0] in "wx":
            return _Pending(self.disk, path, mode)
        buffering = block_size if isinstance(block_size, int) and block_size > 1 else -1
        return self.disk.open(path, mode, buffering)

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_more: Any
    ) -> bytes:
        """The bytes [start, end) of a file; negative numbers count from its end."""
        path = self._strip_protocol(path)
        if start is None and end is None:
            return self.disk.read_bytes(path)
        size = self.disk.stat(path).size
        first, last, _ = slice(start, end).indices(size)
        return self.disk.read_bytes(path, first, max(0, last - first))

    # --- changing

    def mkdir(self, path: str, create_parents: bool = True, **_more: Any) -> None:
        """Make a directory, and those above it."""
        path = self._strip_protocol(path)
        if create_parents:
            self.makedirs(self._parent(path), exist_ok=True)
        self.disk.mkdir(path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a directory and those above it."""
        path = self._strip_protocol(path)
        if path == "/" or self.isdir(path):
            if not exist_ok:
                raise FileExistsError(path)
            return
        self.makedirs(self._parent(path), exist_ok=True)
        try:
            self.disk.mkdir(path)
        except FileExistsError:
            if not (exist_ok and self.isdir(path)):
                raise

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        self.disk.rmdir(self._strip_protocol(path))

    def _rm(self, path: str) -> None:
        path = self._strip_protocol(path)
        if self.disk.stat(path, follow=False).kind == "directory":
            self.disk.rmdir(path)
        else:
            self.disk.remove(path)

    def mv(self, path1: str, path2: str, **more: Any) -> None:
        """Move a file or a directory, all at once."""
        old, new = self._strip_protocol(path1), self._strip_protocol(path2)
        if self.isdir(new):
            new = f"{new.rstrip('/')}/{old.rpartition('/')[2]}"
        self.disk.rename(old, new)

    def cp_file(self, path1: str, path2: str, **_more: Any) -> None:
        """Copy one file; a directory is made."""
        old, new = self._strip_protocol(path1), self._strip_protocol(path2)
        if self.isdir(old):
            self.makedirs(new, exist_ok=True)
            return
        self.makedirs(self._parent(new), exist_ok=True)
        with self.disk.open(old, "rb", 0) as source, self.disk.open(new, "wb", 0) as target:
            for part in _parts(source):
                target.write(part)

    def touch(self, path: str, truncate: bool = True, **_more: Any) -> None:
        """Make an empty file; with `truncate` also in place of one that is there."""
        path = self._strip_protocol(path)
        self._prepare(path)
        self.disk.open(path, "wb" if truncate else "ab", 0).close()

    def _prepare(self, path: str) -> None:
        """Somebody writes a file there."""
        if self._makes_directories:
            self.makedirs(self._parent(path), exist_ok=True)


_PART_BYTES = 1 << 20


def _parts(file: IO[bytes]) -> Iterator[bytes]:
    while part := file.read(_PART_BYTES):
        yield part


class _Pending(io.BufferedWriter):
    """A file that gets its name when its transaction ends (I2)."""

    def __init__(self, disk: Disk, path: str, mode: str) -> None:
        self._disk = disk
        self._path = path
        if "x" in mode and disk.exists(path):
            raise FileExistsError(path)
        above, _, name = path.rpartition("/")
        self._place = f"{above}/.{name[:200]}.{secrets.token_hex(4)}.part"
        super().__init__(disk.open(self._place, "xb", 0))

    def commit(self) -> None:
        """Called by the transaction."""
        self._disk.rename(self._place, self._path)

    def discard(self) -> None:
        """Called by the transaction."""
        self._disk.remove(self._place)
