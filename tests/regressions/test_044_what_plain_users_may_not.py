"""A mount that fusermount3 refuses to a user said only "fuse_session_mount failed".

The reason stood in the log of the process in the background: allow_other without its line in
/etc/fuse.conf, or a mount point that the user may not write to.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from shardfs.errors import UsageError
from shardfs.fuse import mounts

NOBODY = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="acts for another user: needs root")


def refusal_to_nobody(path: Path, *, allow_other: bool = False) -> str:
    """What a user without rights is told; "" if nothing is refused."""
    receiving, sending = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            mounts.require_rights(str(path), allow_other=allow_other)
        except UsageError as error:
            os.write(sending, str(error).encode())
        finally:
            os._exit(0)
    os.close(sending)
    with os.fdopen(receiving) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as name:  # tmp_path is closed to other users
        place = Path(name)
        place.chmod(0o755)
        conf, mine, yours = (place / each for each in ("fuse.conf", "mine", "yours"))
        monkeypatch.setattr(mounts, "_FUSE_CONFIGURATION", conf)
        mine.mkdir()
        os.chown(mine, NOBODY, NOBODY)
        yours.mkdir(mode=0o755)
        assert refusal_to_nobody(mine) == ""
        assert "may not be written to by this user" in refusal_to_nobody(yours)
        for text in ("", "# user_allow_other\nmount_max = 1000\n"):
            conf.write_text(text)
            assert refusal_to_nobody(mine, allow_other=True).startswith("allow_other is for root")
        conf.write_text("mount_max = 1000\nuser_allow_other\n")
        assert refusal_to_nobody(mine, allow_other=True) == ""
        mounts.require_rights(str(yours), allow_other=True)
        assert mounts.may_let_others_in(), "root"
