"""Mount options: what may stand behind -o, what each means, and what may change in a living mount.

Role: one table from words to the fields of MountOptions. The last of several that contradict each
other counts, as for mount(8).

Not here: what the options do: session.py (the kernel's), operations.py (sync, owners, attributes),
access_times.py (reading times).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from shardfs import limits
from shardfs.errors import UsageError

DIRTY_BYTES_MIN: Final = 2 * limits.SHARD_BYTES
POLL_ADAPTIVE: Final = -1
_ID_MAX: Final = (1 << 32) - 2
_SIZE: Final = re.compile(r"(\d{1,15})(?:([kKmMgGtT])(?:i?[bB])?)?")
_POWERS: Final = "kmgt"


class AccessTimes(StrEnum):
    """When reading changes a file's access time."""

    RELATIVE = "relatime"
    NEVER = "noatime"
    ALWAYS = "strictatime"


class ErrorPolicy(StrEnum):
    """What a mount does when its device is in trouble; departure.py has the meaning of each."""

    REMOUNT_READ_ONLY = "remount-ro"
    CONTINUE = "continue"
    UNMOUNT = "unmount"


@dataclass(frozen=True)
class MountOptions:
    """How to mount.

    read_only: take no changes.
    allow_other: let other users in; None: if mounted by root.
    sync: every change is durable before it is answered.
    dirsync: every change of names is.
    access_times: when reading changes a file's access time.
    directory_access_times: reading a directory may change its access time.
    xattrs: there are extended attributes.
    access_lists: there are POSIX access lists.
    uid, gid: whom every file is shown to belong to; None: whom it does belong to.
    dirty_bytes_max: writers wait while more bytes are buffered.
    memory_bytes_max: what the server may take of the machine's memory, bytes.
    poll_us: how long to wait awake for the next request, microseconds; POLL_ADAPTIVE: find out.
    errors: what to do when the device is in trouble.
    metrics: address and port at which figures are served over HTTP; None: nowhere.
    suid, dev, exec: what the kernel allows; None: what it does by itself.
    """

    read_only: bool = False
    allow_other: bool | None = None
    sync: bool = False
    dirsync: bool = False
    access_times: AccessTimes = AccessTimes.RELATIVE
    directory_access_times: bool = True
    xattrs: bool = True
    access_lists: bool = True
    uid: int | None = None
    gid: int | None = None
    dirty_bytes_max: int = limits.DIRTY_BYTES_MAX
    memory_bytes_max: int = limits.MEMORY_BYTES_MAX
    poll_us: int = POLL_ADAPTIVE
    errors: ErrorPolicy = ErrorPolicy.REMOUNT_READ_ONLY
    metrics: tuple[str, int] | None = None
    suid: bool | None = None
    dev: bool | None = None
    exec: bool | None = None

    def kernel_words(self) -> set[str]:
        """The options that the kernel looks after, in the words of mount(8)."""
        words = {"ro" if self.read_only else "rw", str(self.access_times)}
        words |= {word for word in ("sync", "dirsync") if getattr(self, word)}
        for word in ("suid", "dev", "exec"):
            allowed = getattr(self, word)
            if allowed is not None:
                words.add(word if allowed else f"no{word}")
        if not self.directory_access_times:
            words.add("nodiratime")
        return words


@dataclass(frozen=True)
class Wishes:
    """What a user has asked for.

    options: how to mount.
    remount: it is about a mount that exists.
    changed: the fields of `options` that were named.
    log: where the log shall go; empty: as always.
    """

    options: MountOptions
    remount: bool
    changed: frozenset[str]
    log: str = ""


_NOTHING_PRIVILEGED: Final = {"suid": False, "dev": False, "exec": False}
_FLAGS: Final[Mapping[str, Mapping[str, Any]]] = {
    "ro": {"read_only": True},
    "rw": {"read_only": False},
    "sync": {"sync": True},
    "async": {"sync": False},
    "dirsync": {"dirsync": True},
    "allow_other": {"allow_other": True},
    "private": {"allow_other": False},
    "relatime": {"access_times": AccessTimes.RELATIVE},
    "norelatime": {"access_times": AccessTimes.RELATIVE},
    "atime": {"access_times": AccessTimes.RELATIVE},
    "noatime": {"access_times": AccessTimes.NEVER},
    "strictatime": {"access_times": AccessTimes.ALWAYS},
    "nostrictatime": {"access_times": AccessTimes.RELATIVE},
    "diratime": {"directory_access_times": True},
    "nodiratime": {"directory_access_times": False},
    "noxattr": {"xattrs": False},
    "xattr": {"xattrs": True},
    "noacl": {"access_lists": False},
    "acl": {"access_lists": True},
    "suid": {"suid": True},
    "nosuid": {"suid": False},
    "dev": {"dev": True},
    "nodev": {"dev": False},
    "exec": {"exec": True},
    **{f"errors={policy}": {"errors": policy} for policy in ErrorPolicy},
    "noexec": {"exec": False},
    # In fstab these two let users mount, who then get no more than this.
    "user": _NOTHING_PRIVILEGED,
    "users": _NOTHING_PRIVILEGED,
}
_VALUES: Final = {
    "uid": "uid",
    "gid": "gid",
    "cache": "memory_bytes_max",
    "dirty": "dirty_bytes_max",
    "poll": "poll_us",
    "metrics": "metrics",
    "log": "",
}
_LOOPBACK: Final = "127.0.0.1"
_PORT_MAX: Final = 65535
_SIZES_MIN: Final = {"cache": limits.MEMORY_BYTES_MIN, "dirty": DIRTY_BYTES_MIN}
_POLLS: Final = {"adaptive": POLL_ADAPTIVE, "off": 0}
_WITHOUT_EFFECT: Final = frozenset(
    {"", "defaults", "auto", "noauto", "nofail", "nouser", "owner", "group", "_netdev"}
    | {"default_permissions"}
)
_WITHOUT_EFFECT_BEFORE: Final = ("x-", "X-", "comment=", "helper=", "uhelper=", "subtype=")
# What the kernel shows of a mount comes back when it is remounted.
_SHOWN_BY_THE_KERNEL: Final = ("user_id=", "group_id=", "rootcontext=", "max_read=", "blksize=")
REMOUNTABLE: Final = frozenset(
    {"read_only", "sync", "dirsync", "access_times", "directory_access_times"}
    | {"suid", "dev", "exec", "poll_us", "errors"}
)
KNOWN: Final = (
    "ro, rw, sync, async, dirsync, relatime, noatime, strictatime, nodiratime, [no]suid, [no]dev, "
    "[no]exec, allow_other, private, uid=ID, gid=ID, noxattr, noacl, cache=SIZE, dirty=SIZE, "
    "poll=adaptive|off|MICROSECONDS, errors=remount-ro|unmount|continue, "
    "metrics=[ADDRESS:]PORT, log=FILE|journal"
)


def read_options(
    texts: Iterable[str], base: MountOptions | None = None, *, sloppy: bool = False
) -> Wishes:
    """The options of any number of `-o a,b=c`.

    Args:
        base: what holds where nothing is said.
        sloppy: pass over what is unknown (mount -s).

    Raises:
        UsageError: an option is unknown or has a wrong value.
    """
    changes: dict[str, Any] = {}
    remount, log = False, ""
    for option in [each.strip() for text in texts for each in text.split(",")]:
        name, _, value = option.partition("=")
        if option == "remount":
            remount = True
        elif option in _FLAGS:
            changes |= _FLAGS[option]
        elif name == "log" and value:
            log = value
        elif name in _VALUES and value:
            read = _address if name == "metrics" else _number
            changes[_VALUES[name]] = read(option, name, value)
        elif not (sloppy or _is_without_effect(option, remount)):
            raise UsageError(f"unknown mount option {option!r}; known are {KNOWN}")
    options = replace(base or MountOptions(), **changes)
    return Wishes(options, remount, frozenset(changes), log)


def _is_without_effect(option: str, remount: bool) -> bool:
    if option in _WITHOUT_EFFECT or option.startswith(_WITHOUT_EFFECT_BEFORE):
        return True
    return option.startswith("user=") or (remount and option.startswith(_SHOWN_BY_THE_KERNEL))


def _address(option: str, name: str, value: str) -> tuple[str, int]:
    """Where to serve metrics; without an address, for this machine only."""
    host, _, port = value.rpartition(":")
    try:
        address = ipaddress.ip_address(host.strip("[]") or _LOOPBACK)
    except ValueError:
        raise UsageError(
            f"mount option {option}: {host!r} is no address in numbers; write it like "
            f"{_LOOPBACK}:9100"
        ) from None
    if not re.fullmatch(r"\d{1,5}", port) or not 0 < int(port) <= _PORT_MAX:
        raise UsageError(f"mount option {option}: {port!r} is no port; 1 to {_PORT_MAX}")
    return str(address), int(port)


def _number(option: str, name: str, value: str) -> int:
    if name in _SIZES_MIN:
        match = _SIZE.fullmatch(value)
        if match is None:
            raise UsageError(f"mount option {option}: {value!r} is no size; write it like 512M")
        unit = (match[2] or "").lower()
        size = int(match[1]) << (10 * (_POWERS.index(unit) + 1) if unit else 0)
        if size < _SIZES_MIN[name]:
            raise UsageError(f"mount option {option}: at least {_SIZES_MIN[name] // limits.MIB}M")
        return size
    if name == "poll":
        if value not in _POLLS and not re.fullmatch(r"\d{1,7}", value):
            raise UsageError(f"mount option {option}: adaptive, off, or so many microseconds")
        poll_us = _POLLS.get(value, -2)
        poll_us = int(value) if poll_us < POLL_ADAPTIVE else poll_us
        if poll_us > limits.POLL_US_MAX:
            raise UsageError(f"mount option {option}: at most {limits.POLL_US_MAX} microseconds")
        return poll_us
    if not re.fullmatch(r"\d{1,10}", value) or int(value) > _ID_MAX:
        raise UsageError(f"mount option {option}: give a number, as 'id' prints it")
    return int(value)
