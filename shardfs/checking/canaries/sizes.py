"""Mistakes in making a store larger or smaller, and in telling the device what is free.

Role: one part of the catalog; each mutant is as in canary.py.

Not here: moving what is live out of the tail (reclamation.py).
"""

from __future__ import annotations

from typing import Final

from shardfs.checking.canaries.canary import Canary
from shardfs.checking.canaries.planting import Edit
from shardfs.engine import resizing
from shardfs.engine.extents import Extents
from shardfs.engine.resizing import Shrinking

_CUT_OFF = "await self._store._parts.device.set_length(self._size_bytes)"

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
        "added-extents-begin-at-epoch-zero",
        "Extents that are added begin at epoch 0: what lay there before passes for new.",
        (
            Edit(
                Extents.lengthen,
                "epoch = 1 + max(extent.epoch for extent in self.all)",
                "epoch = 0",
            ),
        ),
        ("store",),
    ),
    Canary(
        "highest-epoch-forgotten",
        "The epochs of the extents that are given up are forgotten, and come up again.",
        (
            Edit(
                Extents.shorten,
                "max(each.epoch for each in (self.all[0], *rest))",
                "self.all[0].epoch",
            ),
        ),
        ("store",),
    ),
    Canary(
        "grown-store-keeps-its-bounds",
        "A store that has grown takes no more data than before.",
        (Edit(resizing.grow, "_set_bounds(store)", "pass"),),
        ("store", "files"),
    ),
)
