"""Mistakes planted in shardfs on purpose, which the ordinary checks have to find.

Checks that find nothing may be looking at nothing. `catalog` lists the mutants, `hunt` plants one
and looks how long it lives. docs/checking.md has the table of what caught each.
"""

from shardfs.checking.canaries.canary import Canary
from shardfs.checking.canaries.catalog import catalog
from shardfs.checking.canaries.hunting import Hunt, hunt
from shardfs.checking.canaries.planting import PlantingError

__all__ = ["Canary", "Hunt", "PlantingError", "catalog", "hunt"]
