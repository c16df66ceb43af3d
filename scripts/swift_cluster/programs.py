"""What a cluster needs of the machine, beside Swift itself.

Not here: installing it (scripts/swift-demo).
"""

from __future__ import annotations

import shutil
from typing import Final

_PACKAGES: Final = {"memcached": "memcached", "rsync": "rsync", "losetup": "mount"}


def missing_programs() -> list[str]:
    """Debian packages whose programs are not on this machine."""
    return [package for program, package in _PACKAGES.items() if shutil.which(program) is None]
