"""The `shardfs gc` command: what collecting garbage would give, and doing it now.

Role: asks a device or a mount, a step at a time, and shows how far it is. On a mount the steps
are taken by its server, which goes on serving.

Invariants:
    I1. It may be interrupted at any moment: the step under way is finished or given up, no
        further one is taken, and nothing has to be cleaned up.

Not here: what a step does (engine/collection.py), when it happens by itself
(engine/maintenance.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import click
import trio

from shardfs.cli.errors import FINDING, SUCCESS, root_cause
from shardfs.cli.examples import examples
from shardfs.cli.interrupting import run_until_interrupted
from shardfs.cli.options import PATH, json_option
from shardfs.cli.output import print_facts, print_json, size_text
from shardfs.cli.progress import Bar, progress
from shardfs.fuse.targets import Questions, default_target, open_target

_STAGES = {
    "freeing": "freeing removed files",
    "merging": "merging the tree",
    "emptying": "emptying extents",
    "done": "done",
}


@examples(
    {
        "shardfs gc /srv/data": "what it would give and take",
        "shardfs gc --now /srv/data": "do it now",
    }
)
@click.command()
@click.argument("target", metavar="[DEVICE|MOUNTPOINT]", type=PATH, required=False)
@click.option("--now", is_flag=True, help="Do it, until nothing more is worth it.")
@json_option
def gc(target: str | None, now: bool, as_json: bool) -> int:
    """Say what collecting garbage would give back and what it would move; with --now, do it.

    Nobody needs to: it happens by itself when space is wanted. A mount goes on serving meanwhile.
    An unmounted device is opened for writing. Interrupting it does no harm.

    Without an argument: on the mount that the current directory is in, or the only one there is.
    """
    name = target if target is not None else default_target()
    if not now:
        plan = trio.run(partial(_ask_plan, name))
        if as_json:
            print_json(plan)
        else:
            print_facts(_plan_lines(plan))
        return SUCCESS
    done: dict[str, Any] = {}
    try:
        run_until_interrupted(partial(_collect, name, done))
    except BaseException as error:  # KeyboardInterrupt is one: what was done is told
        if isinstance(root_cause(error), KeyboardInterrupt) and "stage" in done:
            _print_done(done, as_json)
        raise
    _print_done(done, as_json)
    return FINDING if done["stopped"] else SUCCESS


async def _ask_plan(name: str) -> dict[str, Any]:
    async with open_target(name) as target:
        return await target.conversation.answer({"request": "gc-plan"})


async def _collect(name: str, done: dict[str, Any]) -> None:
    """Take steps until nothing is left; `done` says at every moment what has been done."""
    async with open_target(name, change=True) as target:
        done["before"] = await _parts(target.conversation)
        done.update(await target.conversation.answer({"request": "gc-begin"}))
        with progress("collecting garbage") as bar:
            while done["stage"] != "done":
                done.update(await target.conversation.answer({"request": "gc-step"}))
                _show(bar, done)
        done["after"] = await _parts(target.conversation)


async def _parts(conversation: Questions) -> dict[str, Any]:
    parts: dict[str, Any] = (await conversation.answer({"request": "space"}))["parts"]
    return parts


def _plan_lines(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield (
        "given back at once",
        f"{size_text(plan['dead_bytes'])}: {plan['dead_extents']} extents are dead",
    )
    yield (
        "by moving data",
        f"{size_text(plan['gained_bytes'])}: {plan['emptied_extents']} extents, of which "
        f"{size_text(plan['moved_bytes'])} would be moved",
    )
    if plan["merged_bytes"]:
        yield "by merging", f"some of the tree: {size_text(plan['merged_bytes'])} would be merged"
    yield (
        "not worth it",
        f"{size_text(plan['kept_garbage_bytes'])} in extents that are mostly live, or are open",
    )
    if plan["stuck_extents"]:
        yield (
            "stuck",
            f"{plan['stuck_extents']} extents with data that cannot be read or moved; "
            "see: shardfs fsck --data",
        )


def _print_done(done: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(done)
        return
    freed = f"{size_text(done['freed_bytes'])} in {done['freed_extents']} extents"
    lines = [
        ("freed", freed),
        ("moved", f"{size_text(done['moved_bytes'])} of data"),
        ("merged", f"{size_text(done['merged_bytes'])} of the tree"),
    ]
    if "after" in done:
        before, after = done["before"]["garbage_bytes"], done["after"]["garbage_bytes"]
        lines.append(("garbage", f"{size_text(before)} before, {size_text(after)} after"))
    else:
        lines.append(("ended", "early; what was done stays done"))
    if done["stopped"]:
        lines.append(("stopped", done["stopped"]))
    print_facts(lines)


def _show(bar: Bar, done: dict[str, Any]) -> None:
    moved, left = done["moved_bytes"], done["left_bytes"]
    text = (
        f"{_STAGES.get(done['stage'], done['stage'])}: {size_text(moved)} moved, "
        f"{size_text(left)} to go, {size_text(done['freed_bytes'])} freed"
    )
    bar.show(moved, moved + left, text)
