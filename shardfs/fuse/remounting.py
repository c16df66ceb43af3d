"""Changing the options of a living mount: the server's half and the command's half of a remount.

Role: the kernel does not tell a FUSE server that it was remounted. So `mount -o remount` comes
here through the mount helper, which asks the server over its control socket, has the kernel
change what is the kernel's, and then tells the server. The request:

    remount  options, commit      checks new options; with "commit" obeys them from now on

Invariants:
    I1. The server changes nothing before the kernel has agreed.
    I2. A mount becomes writable only if its store takes changes.

Ordering: what is buffered is durable before a remount to read-only is called done.

Not here: other requests (inspection.py), the flags (mounts.change_flags).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Protocol

from shardfs.errors import ReadOnlyError, UsageError
from shardfs.fuse.control import Answer, Conversation, Request, connect
from shardfs.fuse.door import StoreDoor
from shardfs.fuse.mount_options import REMOUNTABLE, MountOptions, read_options
from shardfs.fuse.mounts import MountEntry, change_flags


class Remountable(Protocol):
    """What is asked of a mount (session.Mount fits)."""

    @property
    def mountpoint(self) -> str:
        """Absolute path."""

    @property
    def options(self) -> MountOptions:
        """What is in force."""

    @property
    def store(self) -> StoreDoor:
        """The store below."""

    def obey(self, options: MountOptions) -> None:
        """Serve with these options from now on."""

    async def sync(self) -> None:
        """Make everything durable."""


class MountConversation:
    """Answers `remount`, and has everything else answered by others.

    Args:
        mount: what is served.
        others: answers the other requests.
    """

    def __init__(self, mount: Remountable, others: Conversation) -> None:
        self._mount = mount
        self._others = others

    async def answer(self, request: Request) -> Answer:
        """The result of one request.

        Raises:
            ShardfsError: it cannot be answered.
        """
        if request["request"] != "remount":
            return await self._others.answer(request)
        text, commit = request.get("options"), request.get("commit")
        if not isinstance(text, str) or not isinstance(commit, bool):
            raise UsageError("the request needs a text 'options' and a truth value 'commit'")
        options = self._check(text)
        if commit:
            self._mount.obey(options)
            if options.read_only and not self._mount.store.health.reason:
                await self._mount.sync()
        return {"words": sorted(options.kernel_words())}

    async def aclose(self) -> None:
        """The connection has ended."""
        await self._others.aclose()

    def _check(self, text: str) -> MountOptions:
        old = self._mount.options
        wishes = read_options(("remount", text), old)
        new = wishes.options
        for name in sorted(wishes.changed - REMOUNTABLE):
            if getattr(new, name) != _in_force(name, old):
                raise UsageError(
                    f"{name} cannot be changed while mounted; unmount {self._mount.mountpoint} "
                    "and mount it with the new options"
                )
        # What cannot be changed is left as it was, whatever words said the same.
        kept = {name: getattr(old, name) for name in wishes.changed - REMOUNTABLE}
        reason = self._mount.store.health.reason
        if reason and old.read_only and not new.read_only:
            raise ReadOnlyError(reason)
        return replace(new, **kept)


def _in_force(name: str, options: MountOptions) -> Any:
    value = getattr(options, name)
    return True if name == "allow_other" and value is None else value


async def remount(entry: MountEntry, texts: Iterable[str]) -> None:
    """Change the options of a mount; see the module.

    Args:
        texts: the texts behind -o.

    Raises:
        UsageError, ReadOnlyError, RemoteError: nothing was changed.
    """
    text = ",".join(texts)
    async with connect(entry) as server:
        request: Request = {"request": "remount", "options": text, "commit": False}
        words = (await server.answer(request))["words"]
        change_flags(entry.mountpoint, words, whole=True)
        await server.answer({**request, "commit": True})
