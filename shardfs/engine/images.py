"""Image files: making one, and changing its length.

Role: what happens to the file itself; what is in it is the device's.

Ordering: a file is longer, or shorter, durably before the caller goes on.

Not here: reading and writing it (device_calls.py).
"""

from __future__ import annotations

import os

from shardfs.errors import UsageError


def create_image(path: str | os.PathLike[str], size_bytes: int) -> None:
    """Makes a sparse image file of `size_bytes`, all zeros.

    Raises: UsageError when the path exists already or cannot be made.
    Durable when: it returns.
    """
    name = os.fspath(path)
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, size_bytes)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        folder = os.open(os.path.dirname(name) or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise UsageError(f"cannot make the image file {name}: {error.strerror}") from error


def set_image_bytes(size_bytes: int, descriptor: int) -> None:
    """Makes an image file longer, with a hole, or shorter.

    Raises: OSError.
    Durable when: it returns.
    """
    os.ftruncate(descriptor, size_bytes)
    os.fsync(descriptor)
