"""fuse/mount_options.py: words, contradictions, refusals."""

from __future__ import annotations

import pytest

from shardfs.errors import UsageError
from shardfs.fuse.mount_options import KNOWN, AccessTimes, MountOptions, read_options


def options_of(*texts: str) -> MountOptions:
    return read_options(texts).options


def test_words() -> None:
    options = options_of("ro,noexec", "dirty=32M", "x-systemd.automount,defaults", "")
    assert options.read_only and options.exec is False
    assert options.dirty_bytes_max == 32 << 20
    assert options.allow_other is None
    assert options_of("allow_other").allow_other is True
    assert options_of("private").allow_other is False
    assert (options_of("uid=1000,gid=0").uid, options_of("uid=1000,gid=0").gid) == (1000, 0)
    assert not options_of("noxattr").xattrs
    assert options_of("dirsync").dirsync and not options_of("dirsync").sync
    assert read_options(("log=journal",)).log == "journal"
    assert options_of() == MountOptions()


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", AccessTimes.RELATIVE),
        ("noatime", AccessTimes.NEVER),
        ("strictatime", AccessTimes.ALWAYS),
        ("noatime,relatime", AccessTimes.RELATIVE),
        ("relatime,noatime", AccessTimes.NEVER),
        ("strictatime,atime", AccessTimes.RELATIVE),
    ],
)
def test_the_last_word_counts(text: str, rule: AccessTimes) -> None:
    assert options_of(text).access_times is rule
    assert not options_of("ro,rw").read_only
    assert options_of("nosuid", "suid").suid is True


def test_what_fstab_holds_is_no_error() -> None:
    text = "auto,noauto,nofail,_netdev,nouser,owner,group,comment=x,x-gvfs-show,X-mount.mkdir"
    assert options_of(text, "x-systemd.requires=/a,default_permissions") == MountOptions()


def test_users_mounts_allow_nothing_by_default() -> None:
    options = options_of("user")
    assert (options.suid, options.dev, options.exec) == (False, False, False)
    assert options_of("users,exec").exec is True
    assert options_of("user=alice") == MountOptions()


@pytest.mark.parametrize(
    "text",
    [
        *("fast", "RO", "ro=1", "uid", "uid=", "uid=-1", "uid=root", "gid=4294967295", "gid=1.5"),
        *("dirty", "dirty=x", "dirty=1M", "log=", "user_id=0", "max_read=4096"),
    ],
)
def test_refusals(text: str) -> None:
    with pytest.raises(UsageError, match=text.partition("=")[0]):
        read_options((f"ro,{text}",))


def test_a_refusal_names_what_is_known() -> None:
    with pytest.raises(UsageError) as raised:
        read_options(("fast",))
    assert KNOWN in str(raised.value)
    assert read_options(("fast,ro",), sloppy=True).options.read_only


def test_a_remount_brings_back_what_the_kernel_shows() -> None:
    shown = "rw,relatime,user_id=0,group_id=0,default_permissions,allow_other"
    wishes = read_options(("remount", shown, "ro"))
    assert wishes.remount and wishes.options.read_only
    assert "read_only" in wishes.changed and "uid" not in wishes.changed


def test_options_are_built_on_those_in_force() -> None:
    old = options_of("noatime,uid=7,nosuid")
    new = read_options(("remount,ro",), old)
    assert new.options.uid == 7 and new.options.access_times is AccessTimes.NEVER
    assert new.changed == {"read_only"}


def test_words_for_the_kernel() -> None:
    assert MountOptions().kernel_words() == {"rw", "relatime"}
    text = "ro,strictatime,nodiratime,sync,dirsync,nosuid,dev,noexec,uid=3"
    assert options_of(text).kernel_words() == set(text.split(",")) - {"uid=3"}


@pytest.mark.parametrize("value", ["on", "-1", "1.5", "10001", "1us", "99999999"])
def test_how_to_wait_for_requests(value: str) -> None:
    with pytest.raises(UsageError, match=f"poll={value}"):
        read_options([f"poll={value}"])
    assert read_options(["poll=adaptive"]).options == read_options([]).options
    assert read_options(["poll=200,poll=off"]).options.poll_us == 0


def test_a_bound_of_memory_that_is_too_small_says_what_would_do() -> None:
    with pytest.raises(UsageError, match="cache=10M: at least 192M"):
        read_options(["cache=10M"])
    assert read_options(["cache=1G"]).options.memory_bytes_max == 1024 * 1024 * 1024
