"""Shows OpenStack Swift on shardfs disks: S3 calls, then a fault of each kind.

Usage: scripts/swift-demo [--folder DIR] [--keep] [--skip-faults]

Everything is on 127.0.0.1, and gone when it ends.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.swift_cluster.bucket import Bucket
from scripts.swift_cluster.cluster import Cluster
from scripts.swift_cluster.faults import FAULTS, repair, survive, verify_disks
from scripts.swift_cluster.processes import ClusterError, end_in_order_on_sigterm
from scripts.swift_cluster.programs import missing_programs
from scripts.swift_cluster.replicas import replica_differences

LARGE_BYTES = 100 << 20
SMALL_COUNT = 60


class Story:
    """Prints what is done, how long it took, and ends at the first thing that is wrong."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        """One line, with the seconds since the beginning."""
        print(f"[{time.monotonic() - self._began:6.1f} s] {text}", flush=True)

    def require(self, findings: list[str], what: str) -> None:
        """Raises:
        ClusterError: there are findings.
        """
        if findings:
            raise ClusterError(f"{what}: {findings[0]} (and {len(findings) - 1} more)")
        self.say(f"  {what}: right")


def show_calls(story: Story, cluster: Cluster, bucket: Bucket) -> None:
    """Every S3 call that the demo is about."""
    bucket.create()
    story.say(f"bucket {bucket.name}; {SMALL_COUNT} objects of 16 KiB")
    contents = {f"object-{number}": bucket.content(16 << 10) for number in range(SMALL_COUNT)}
    stored = [key for key, content in contents.items() if bucket.put(key, content)]
    story.require(sorted(set(contents) - set(stored)), "all stored")
    story.require(sorted(set(contents) ^ bucket.names()), "all listed")
    story.require(bucket.differences(), "all read back, MD5 equal")
    part = bucket.get_range("object-0", 1000, 1999)
    story.require(["object-0"] * (part != contents["object-0"][1000:2000]), "a range of one")
    bucket.copy("object-1", "copy-of-object-1")
    story.require(["copy"] * (bucket.get("copy-of-object-1") != contents["object-1"]), "a copy")
    doomed = [f"object-{number}" for number in range(0, SMALL_COUNT, 3)]
    kept = [key for key in doomed if not bucket.delete(key)]
    story.require(kept + sorted(bucket.names() & set(doomed)), f"{len(doomed)} removed")
    large = bucket.content(LARGE_BYTES)
    bucket.put_large("large", large)
    read = bucket.get("large") or b""
    equal = hashlib.sha256(read).digest() == hashlib.sha256(large).digest()
    story.require(["large"] * (not equal), f"{LARGE_BYTES >> 20} MiB in parts, SHA-256 equal")
    # The parts are objects of a bucket of their own; what the ring places here is their list.
    story.require(repair(cluster, bucket), "replicas on three disks, bytes and attributes equal")
    story.require(
        replica_differences(cluster, bucket.name, doomed, there=False), "no data of removed objects"
    )


def show_faults(story: Story, cluster: Cluster, bucket: Bucket) -> None:
    """One fault of each kind, each on another disk."""
    disks = list(cluster.disks.values())
    for number, fault in enumerate(FAULTS):
        disk = disks[number % len(disks)]
        story.say(f"{disk.name}: {fault.name}; calls go on; put right; replicators run")
        story.require(
            survive(cluster, bucket, fault, disk), "nothing lost, all replicas equal again"
        )
    verify_disks(cluster)
    story.say("fsck --data of all disks: clean")


def main() -> int:
    """Run the demo; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="for images and logs (needs 8 GiB at most)")
    parser.add_argument("--keep", action="store_true", help="keep the logs")
    parser.add_argument("--skip-faults", action="store_true", help="S3 calls only")
    chosen = parser.parse_args()
    missing = missing_programs()
    if missing:
        print(f"swift-demo: apt-get install {' '.join(missing)}", file=sys.stderr)
        return 2
    end_in_order_on_sigterm()
    folder = Path(tempfile.mkdtemp(prefix="shardfs-swift-", dir=chosen.folder))
    story = Story()
    try:
        story.say(f"Swift on four shardfs disks below {folder}")
        with Cluster(folder) as cluster:
            story.say(f"S3 at {cluster.layout.endpoint}")
            bucket = Bucket(cluster.layout.endpoint, "holiday")
            show_calls(story, cluster, bucket)
            if not chosen.skip_faults:
                show_faults(story, cluster, bucket)
            bucket.remove()
            story.say("bucket emptied and removed")
        story.say("all processes, mounts and loop devices are gone")
    except ClusterError as error:
        print(f"swift-demo: {error}\nswift-demo: logs are in {folder}/log", file=sys.stderr)
        chosen.keep = True
        return 1
    finally:
        if not chosen.keep:
            shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
