"""Every canary, those of the sixteen published issues first.

Role: puts the parts of the catalog together.

Not here: the mutants themselves (one module for each component).
"""

from __future__ import annotations

from shardfs.checking.canaries import (
    chunks,
    concurrency,
    extents,
    files,
    models,
    reclamation,
    sizes,
    store,
    tree,
)
from shardfs.checking.canaries.canary import Canary


def catalog() -> tuple[Canary, ...]:
    """All canaries: by the number of the issue, the others by component."""
    parts = (extents, reclamation, sizes, chunks, tree, store, concurrency, files, models)
    found = [canary for part in parts for canary in part.CANARIES]
    published = [canary for canary in found if canary.issue is not None]
    published.sort(key=lambda canary: canary.issue or 0)
    return (*published, *(canary for canary in found if canary.issue is None))
