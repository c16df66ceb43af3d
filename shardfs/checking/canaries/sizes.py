"""Mistakes in making a store larger or smaller, and in telling the device what is free.

Role: one part of the catalog; each mutant is as in canary.py.

Not here: moving what is live out of the tail (reclamation.py).
"""

from __future__ import annotations

from typing import Final

from shardfs.checking.canaries.canary import Canary
from shardfs.checking.canaries.planting import Edit
from shardfs.engine import resizing
from shardfs.engine.shrinking import Shrinking

CANARIES: Final = (
    Canary(
        "image-cut-off-before-its-store",
        "The image file is cut off before both superblock copies say the smaller size.",
        (
            Edit(
                Shrinking._finish,
                "if self._identity != self._before:",
                "await store._parts.device.set_length(self._size_bytes)\n"
                "if self._identity != self._before:",
            ),
        ),
        ("store",),
    ),
    Canary(
        "tail-given-up-while-it-is-named",
        "The tail is given up while the manifest or the delta log still names extents of it.",
        (
            Edit(
                Shrinking._finish,
                "while committer.persistent_checkpoint < last_use:",
                "while False:",
            ),
        ),
        ("store",),
    ),
    Canary(
        "grown-store-keeps-its-bounds",
        "A store that has grown takes no more data than before.",
        (Edit(resizing.grow, "set_bounds(store)", "pass"),),
        ("store", "files"),
    ),
)
