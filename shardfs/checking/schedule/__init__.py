"""A schedule explorer for trio: every order of tasks that a strategy asks for, and replay.

It knows nothing of shardfs; any trio program can be explored. docs/checking-schedules.md shows how.
"""

from shardfs.checking.schedule.checks import ScheduleFailure, check, describe
from shardfs.checking.schedule.explorer import (
    Control,
    Exploration,
    Program,
    Run,
    each_run,
    explore,
    replay,
    run_once,
)
from shardfs.checking.schedule.findings import Finding, FindingKind
from shardfs.checking.schedule.shrinking import shrink
from shardfs.checking.schedule.strategies import (
    Actor,
    ActorKind,
    Exhaustive,
    NondeterminismError,
    Priorities,
    Random,
    Replay,
    Strategy,
)
from shardfs.checking.schedule.trace import Trace, decode, encode

__all__ = [
    "Actor",
    "ActorKind",
    "Control",
    "Exhaustive",
    "Exploration",
    "Finding",
    "FindingKind",
    "NondeterminismError",
    "Priorities",
    "Program",
    "Random",
    "Replay",
    "Run",
    "ScheduleFailure",
    "Strategy",
    "Trace",
    "check",
    "decode",
    "describe",
    "each_run",
    "encode",
    "explore",
    "replay",
    "run_once",
    "shrink",
]
