"""Mistakes in the reference models: a specification that is wrong is found by what is right.

Role: one part of the catalog; each mutant is as in canary.py.

Not here: mistakes in shardfs (the other parts).
"""

from __future__ import annotations

from typing import Final

from shardfs.checking.canaries.canary import Canary
from shardfs.checking.canaries.planting import Edit
from shardfs.checking.conformance import store_upkeep
from shardfs.checking.models.key_value_model import KeyValueModel
from shardfs.checking.models.store_model import ModelStore

CANARIES: Final = (
    Canary(
        "model-uses-locators-again",
        "After a power cut the model of the store gives out locators that chunks already have.",
        (Edit(ModelStore.power_cut, "after._sequence = self._sequence\n", ""),),
        ("files",),
        issue=15,
    ),
    Canary(
        "model-takes-reclamation-for-a-sync",
        "The model holds everything for persistent once extents were reclaimed: after a crash it "
        "demands what was never promised.",
        (
            Edit(
                store_upkeep.reclaim,
                "await system.store.reclaim()",
                "await system.store.reclaim()\nsystem.model.persist()",
            ),
        ),
        ("store",),
        issue=9,
    ),
    Canary(
        "model-forgets-unpromised-batches",
        "The model allows only what was promised to survive a crash.",
        (
            Edit(
                KeyValueModel.snapshot,
                "[Applied(each.changes) for each in self._pending]",
                "[]",
            ),
        ),
        ("store",),
    ),
)
