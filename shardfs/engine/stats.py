"""Figures that the store gives about itself.

Role: frozen values, made on request; the command line and tests read the same ones.

Invariants:
    I1. The parts of SpaceParts are disjoint, none is negative, and their sum is the device's size.

Not here: counting (each component counts for itself).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Space:
    """How full a store is. free_bytes is what a user can write now, once garbage is reclaimed."""

    total_bytes: int
    free_bytes: int
    reserved_bytes: int


@dataclass(frozen=True, slots=True)
class SpaceParts:
    """Where the bytes of a device are: disjoint parts, which add up to its size (I1).

    live_bytes: frames of data that something refers to.
    garbage_bytes: what reclamation will give back; counts as free.
    free_bytes: what can be written without reclaiming anything.
    pending_bytes: set aside for data that is not appended yet.
    index_bytes: the tree's runs and its manifest.
    log_bytes: deltas that no run holds yet.
    superblock_bytes: two extents.
    index_reserve_bytes: kept free for the tree to be merged.
    working_bytes: kept for deltas, open extents, and reclamation to work at a bounded cost.
    outside_bytes: behind the last extent, not used.
    """

    live_bytes: int
    garbage_bytes: int
    free_bytes: int
    pending_bytes: int
    index_bytes: int
    log_bytes: int
    superblock_bytes: int
    index_reserve_bytes: int
    working_bytes: int
    outside_bytes: int

    @property
    def total_bytes(self) -> int:
        """Size of the device."""
        return (
            self.live_bytes
            + self.available_bytes
            + self.pending_bytes
            + self.metadata_bytes
            + self.reserved_bytes
        )

    @property
    def available_bytes(self) -> int:
        """What a user can write now: Space.free_bytes."""
        return self.garbage_bytes + self.free_bytes

    @property
    def metadata_bytes(self) -> int:
        """What the index of the data takes."""
        return self.index_bytes + self.log_bytes

    @property
    def reserved_bytes(self) -> int:
        """What user data may not take."""
        return (
            self.superblock_bytes
            + self.index_reserve_bytes
            + self.working_bytes
            + self.outside_bytes
        )


@dataclass(frozen=True, slots=True)
class Hold:
    """A reason why an extent is not free: one word for programs, one sentence for people."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class ExtentFigures:
    """One extent, and what keeps it from being free.

    offset: where it starts on the device, bytes.
    state, stream: as on the device, in lower case; the stream is what is written to it.
    order: a later extent has a higher number.
    garbage_bytes: written or sealed, and not live; includes what packing leaves unused.
    last_delta: nothing of it dies, or is read at recovery, for a delta beyond this one.
    holds: none if it is free.
    """

    extent: int
    offset: int
    size_bytes: int
    state: str
    stream: str
    epoch: int
    write_pointer: int
    live_bytes: int
    garbage_bytes: int
    order: int
    last_delta: int
    holds: tuple[Hold, ...]


@dataclass(frozen=True, slots=True)
class RunFigures:
    """One run of the tree; its keys are those of its first and its last entry."""

    run_id: int
    level: int
    segments: int
    blocks: int
    entries: int
    tombstones: int
    run_bytes: int
    first_key: bytes
    last_key: bytes


@dataclass(frozen=True, slots=True)
class LevelFigures:
    """The runs of one level together."""

    level: int
    runs: int
    entries: int
    run_bytes: int


@dataclass(frozen=True, slots=True)
class TreeFigures:
    """The shape of the tree.

    checkpoint: deltas up to this number are in the runs.
    log_bytes: deltas behind it, which a recovery would read.
    checkpoint_debt: 1: a checkpoint is due.
    merge_debt: 0: no level is full; 1: one holds three times as many runs as it should.
    garbage_bytes: about what merging everything would save.
    stream_bytes: written since the open, by stream.
    runs: oldest first.
    """

    memtable_entries: int
    memtable_bytes: int
    frozen_entries: int
    checkpoint: int
    durable_delta: int
    log_bytes: int
    checkpoint_debt: float
    merge_debt: float
    is_merging: bool
    tree_bytes: int
    garbage_bytes: int
    stream_bytes: dict[str, int]
    levels: tuple[LevelFigures, ...]
    runs: tuple[RunFigures, ...]


@dataclass(frozen=True, slots=True)
class CollectionPlan:
    """What collecting garbage would give, and take, if nothing else changed meanwhile.

    dead_extents: nothing lives in them: given back without moving anything.
    emptied_extents, moved_bytes, gained_bytes: partly live ones that are worth emptying, what is
        live in them, and what that gives.
    merged_bytes: runs of the tree that would be merged.
    kept_garbage_bytes: in extents with too little garbage to be worth it, or still written to.
    stuck_extents: something in them could not be moved.
    """

    dead_extents: int
    dead_bytes: int
    emptied_extents: int
    moved_bytes: int
    gained_bytes: int
    merged_bytes: int
    kept_garbage_bytes: int
    stuck_extents: int


@dataclass(frozen=True, slots=True)
class CollectionProgress:
    """What collecting garbage has done so far.

    stage: "merging", "emptying" or "done".
    moved_bytes, left_bytes: data written again, and an estimate of what is yet to be.
    merged_bytes: runs of the tree that were merged.
    freed_extents, freed_bytes: given back.
    stopped: why it ended early, or empty.
    """

    stage: str
    moved_bytes: int
    left_bytes: int
    merged_bytes: int
    freed_extents: int
    freed_bytes: int
    stopped: str = ""

    @property
    def is_done(self) -> bool:
        """Nothing is worth doing any more, or it cannot go on."""
        return self.stage == "done"


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """Counts of one open store since it was opened; sizes as of now, in bytes."""

    health: str
    reason: str
    durable_delta: int
    pending_bytes: int
    queued_bytes: int
    memtable_entries: int
    memtable_bytes: int
    runs: int
    levels: tuple[int, ...]
    tree_bytes: int
    extents_free: int
    extents_total: int
    cache_hits: int
    cache_misses: int
    cache_bytes: int
    device_reads: int
    device_read_bytes: int
    device_writes: int
    device_write_bytes: int
    device_flushes: int
    scattered_shards: int
    """Shards in many small pieces that are to be looked at in the background."""
    gathered_shards: int
    gathered_bytes: int
    stream_bytes: dict[str, int]
    """Written to the device, by the stream they belong to; the superblock's are not among them."""
    debts: dict[str, float]
    """How far each kind of background work is behind, from 0 (nothing has to be done) to 1 (writers
    wait for it): checkpoint, merging, reclamation, and the queue of the device."""
