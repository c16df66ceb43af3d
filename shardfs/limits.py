"""Every size and bound of shardfs, and the relations between them.

Role: a limit is looked up here and nowhere else. Sizes are bytes unless the name says otherwise.
The asserts at the bottom relate the constants; the package does not import when they are broken.

Not here: what mkfs chooses for one device (engine/mkfs.py) and what is on disk (engine/layout.py).
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# --- device and extents ---------------------------------------------------------------------
BLOCK_BYTES: Final = 4 * KIB
"""Every device write starts at, and is a multiple of, this many bytes."""
SECTOR_BYTES_ALLOWED: Final = (512, 4 * KIB)
EXTENT_BYTES_MIN: Final = 64 * KIB
EXTENT_BYTES_MAX: Final = 1 * GIB
MOUNT_EXTENT_BYTES_MIN: Final = 128 * KIB
"""In smaller extents the pieces of a full shard do not fit into a record."""
EXTENT_BYTES_DEFAULT_MAX: Final = 64 * MIB
"""mkfs picks no larger extent by itself, unless there would be too many of them."""
EXTENT_COUNT_MAX: Final = 32768
"""A snapshot of every extent's state must fit into one frame."""
EXTENT_COUNT_MIN: Final = 24
EXTENT_COUNT_TARGET: Final = 1024
"""mkfs makes extents about this many to a device, within the bounds above."""
EXTENT_BYTES_DEFAULT_MIN: Final = 1 * MIB
"""mkfs picks no smaller extent by itself."""

# --- frames and chunks ----------------------------------------------------------------------
GRANULE_BYTES: Final = 4 * KIB
"""Each granule of a payload has a checksum of its own, so a part can be read and verified."""
WHOLE_PAYLOAD_BYTES_MAX: Final = 32 * KIB
"""A payload up to this long is one granule: it is mostly read whole, and has one checksum."""
CHUNK_BYTES_MAX: Final = 1 * MIB
CHUNKS_PER_EXTENT_MIN: Final = 4
KEY_BYTES_MAX: Final = 1024
FRAME_ALIGNMENT_BYTES: Final = 8

# --- tree -----------------------------------------------------------------------------------
RUN_BLOCK_BYTES: Final = 16 * KIB
"""Target size of one block of sorted entries."""
CLUSTER_PREFIX_BYTES: Final = 9
"""Neighbours that share this long a key prefix stay in one block while it is under twice its
target: a small file's inode and first shard are then one read."""
SEGMENT_BYTES_MAX: Final = 16 * MIB
RUNS_PER_LEVEL_MAX: Final = 4
"""When a level holds this many runs, they are merged into one run of the next level."""
LEVEL_COUNT_MAX: Final = 12
FILTER_FALSE_POSITIVE_RATE: Final = 0.01
MEMTABLE_BYTES_MAX: Final = 8 * MIB
DELTA_LOG_BYTES_MAX: Final = 32 * MIB
"""A checkpoint starts when the delta log has grown by this much: it bounds recovery."""
LOG_LOOK_BYTES: Final = 4 * MIB
"""Opening looks this far past the delta log's end for what came later: no less than the largest
write, which may be the one that the device has lost."""
OVERDUE_FACTOR: Final = 2
"""Who adds to the memtable or the log waits when they have outgrown their bounds so many times."""
DELTA_BYTES_MAX: Final = 4 * MIB
"""Changes not yet in a delta; beyond it a commit is started."""
RECORD_BYTES_MAX: Final = 68 * KIB
INLINE_VALUE_BYTES_MAX: Final = 256
"""Store.put keeps values up to this size in the tree itself."""
RIDER_BYTES_MAX: Final = 16 * MIB
"""A delta may be issued together with at most this much unflushed data; recovery verifies it."""
RIDERS_MAX: Final = 1024
"""And with at most so many chunks of it, each of which recovery reads."""
DELTA_PART_BYTES: Final = 16 * KIB
"""A large delta is cut into parts of this size, each encoded in a slice of its own."""
MERGE_PAGE_ENTRIES: Final = 64
"""Merging takes this many entries of each run at a time."""

# --- scheduling -----------------------------------------------------------------------------
WRITE_BYTES_TARGET: Final = 1 * MIB
"""A tail of an extent is handed to the device when it has grown to this size."""
WRITES_IN_FLIGHT_MAX: Final = 4
QUEUED_BYTES_MAX: Final = 64 * MIB
"""Store.admit waits while more than this is waiting to be written."""
COMMIT_INTERVAL_S: Final = 2.0
"""Applied batches are made durable after this long even if nobody asks."""
CACHE_BYTES_DEFAULT: Final = 128 * MIB
DECODED_BYTES_MAX: Final = 8 * MIB
"""Memory of shards that were looked up a moment ago."""

# --- pacing -----------------------------------------------------------------------------------
SLICE_COST_MAX: Final = 96
"""Background work gives way after so many entries, or as much of other work (pacing.Slices)."""
REST_S_MAX: Final = 0.004
"""It rests this long after a slice when there is little to do, not at all when there is much."""
REST_S_MIN: Final = 0.0005
ADMISSION_DELAY_S_MAX: Final = 0.02
"""Store.admit delays a writer no longer than this, unless space has run out."""
YOUNG_OBJECTS_MAX: Final = 2000
"""Python's search for garbage looks at about so many objects at a time while a mount is served:
a fraction of a millisecond."""

# --- superblock -----------------------------------------------------------------------------
SUPERBLOCK_EXTENTS: Final = 2
SUPERBLOCK_LOG_BYTES_MAX: Final = 4 * MIB
"""A superblock extent is started afresh when its log has grown to this size."""
LABEL_BYTES_MAX: Final = 64

# --- space ----------------------------------------------------------------------------------
META_SPARE_EXTENTS: Final = 2
"""Extents declared ahead for the delta log, so that a commit never waits for a declaration."""
RESERVE_EXTENTS_MIN: Final = 12
RESERVE_FRACTION: Final = 0.02
"""Extents that user data may not take: kept for deltas, runs and reclamation."""

# --- file system ----------------------------------------------------------------------------
NAME_BYTES_MAX: Final = 255
SYMLINK_BYTES_MAX: Final = 4095
XATTR_NAME_BYTES_MAX: Final = 255
XATTR_BYTES_MAX: Final = 64 * KIB
LINKS_MAX: Final = (1 << 32) - 2
SHARD_BYTES: Final = 4 * MIB
"""A file is cut into shards of this many bytes."""
FILE_BYTES_MAX: Final = 1 << 60
"""A file is at most this long; most of it may be holes."""
PIECES_PER_SHARD_MAX: Final = 256
"""A shard with more pieces is rewritten as whole chunks."""
SCATTERED_PIECES_MIN: Final = 16
"""A shard with fewer pieces is never rewritten in the background."""
SCATTERED_BYTES_PER_READ: Final = 64 * KIB
"""So much is rewritten in the background to save one device read of a scattered shard."""
SCATTERED_SPACE_SHARE: Final = 32
"""A shard is rewritten as whole chunks when what its pieces take beside their data, at
PIECE_SPACE_BYTES each, is more than this part of it, and more than SCATTERED_PIECES_MIN take."""
SCATTERED_BYTES_PER_PIECE: Final = 32 * KIB
"""So much is rewritten to save one piece when writers would otherwise find the device full."""
PIECE_SPACE_BYTES: Final = 256
"""A piece takes no more than this beside its data: the head of a frame, and twice its entry in the
tree, which has room to be merged."""
SCATTERED_IDLE_S: Final = 10.0
"""Not while the shard has changed within this time: it would soon be scattered again."""
SCATTERED_SHARDS_MAX: Final = 4 * KIB
"""So many scattered shards are remembered."""
GATHERED_BYTES_PER_S: Final = 8 * MIB
"""Rewriting scattered shards in the background goes no faster."""
SHARDS_PER_BATCH_MAX: Final = 128
"""Truncating and freeing large files goes in batches of at most this many shards."""
INODES_PER_LEASE: Final = 1024
"""Inode numbers are set aside this many at a time: one that a crash has undone is not used again
for another file."""
INODES_BYTES_MAX: Final = 40 * MIB
"""Memory of cached inodes, and of cached directory entries, before it is shared out."""
ENTRIES_BYTES_MAX: Final = 40 * MIB
INODE_MEMORY_BYTES: Final = 560
"""A cached inode takes this much of memory besides the target of a symbolic link."""
ENTRY_MEMORY_BYTES: Final = 320
"""A cached directory entry takes this much besides its name."""
LOOKUP_MEMORY_BYTES: Final = 110
"""An inode that the kernel knows takes this much."""
HANDLE_MEMORY_BYTES: Final = 300
"""An open file or directory takes this much, besides names of one that is being listed."""
LISTED_NAME_MEMORY_BYTES: Final = 230
"""A name of a directory that was listed a moment ago takes this much."""
WAITING_NAMES_MAX: Final = 128 * KIB
"""Inodes, and names that were given to them or taken away, whose second copy may wait."""
WAITING_NAME_MEMORY_BYTES: Final = 200
"""Each of them takes this much."""
MEMORY_BYTES_MAX: Final = 512 * MIB
"""A mount takes no more memory than this, if not told otherwise."""
MEMORY_BYTES_MIN: Final = 192 * MIB
"""It cannot be told to do with less."""
REQUEST_MEMORY_BYTES: Final = 32 * MIB
"""Set aside for requests that are being served."""
CACHES_BYTES_MIN: Final = 16 * MIB
"""Caches are never smaller together."""
DIRECTORY_PAGE_ENTRIES: Final = 256
"""Directory entries read ahead for one handle."""
DIRTY_BYTES_MAX: Final = 128 * MIB
"""Writers wait while more than this is buffered, DIRTY_PART_MEMORY_BYTES for each part included."""
DIRTY_PART_MEMORY_BYTES: Final = 2 * KIB
"""Memory that a separate range of buffered data takes besides its bytes."""
DIRTY_AGE_S: Final = 3.0
"""Buffered data older than this is given to the engine, which commits every COMMIT_INTERVAL_S."""
FLUSHER_INTERVAL_S: Final = 0.5
FLUSH_ATTEMPTS_MAX: Final = 3
"""Buffered data that cannot be flushed for a read error is given up after so many in a row."""
DIRTY_PART_SPACE_BYTES: Final = 512
"""Space reserved with each separate range of buffered data, for its frame and its index entry."""
GRANULE_SPACE_BYTES: Final = 32
"""And with each granule of it: a digest in the frame, and twice one in the tree; rounded up."""
CHANGE_BYTES_RESERVED: Final = 16 * KIB
"""Space that must be free for a change that makes the file system larger."""
BACKGROUND_REQUESTS_MAX: Final = 64
"""The kernel may send so many requests of its own accord (read-ahead) at once."""
POLL_US_MAX: Final = 10_000
"""A mount waits awake for the next request no longer than this, whatever is wished."""
ORPHANS_QUEUED_MAX: Final = 16 * KIB
"""Unlinking waits while more than this many removed files are yet to be freed."""

assert EXTENT_BYTES_MIN % BLOCK_BYTES == 0
assert EXTENT_BYTES_MIN // CHUNKS_PER_EXTENT_MIN >= 2 * KEY_BYTES_MAX
assert GRANULE_BYTES % BLOCK_BYTES == 0
assert CHUNK_BYTES_MAX % GRANULE_BYTES == 0
assert WHOLE_PAYLOAD_BYTES_MAX >= 2 * GRANULE_BYTES, "tables of digests tell the two apart"
assert CHUNK_BYTES_MAX * 2 <= EXTENT_BYTES_MAX
assert RUN_BLOCK_BYTES * 4 <= CHUNK_BYTES_MAX
assert all(BLOCK_BYTES % sector == 0 for sector in SECTOR_BYTES_ALLOWED)
assert DELTA_BYTES_MAX <= MEMTABLE_BYTES_MAX <= DELTA_LOG_BYTES_MAX
assert WRITE_BYTES_TARGET % BLOCK_BYTES == 0
assert SHARD_BYTES % CHUNK_BYTES_MAX == 0
assert 2 <= SCATTERED_PIECES_MIN < PIECES_PER_SHARD_MAX
assert DIRTY_AGE_S + FLUSHER_INTERVAL_S < SCATTERED_IDLE_S, "buffered data counts as a change"
assert XATTR_BYTES_MAX + 64 <= RECORD_BYTES_MAX
assert FILE_BYTES_MAX % SHARD_BYTES == 0
assert SHARDS_PER_BATCH_MAX >= 2, "freeing begins each batch with the inode, which goes last"
assert DIRTY_BYTES_MAX >= 8 * SHARD_BYTES
assert DIRTY_AGE_S + FLUSHER_INTERVAL_S < 5.0, "what is older than 5 s survives a power cut"
