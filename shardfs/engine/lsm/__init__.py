"""The metadata tree: a log-structured merge tree from keys to records and shards.

Only the values that say where data lies are in the tree; the data itself stays in chunks
outside it, so that merging never rewrites it (Lu et al., "WiscKey", FAST 2016).
"""
