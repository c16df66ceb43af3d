"""git on a mount: commits, merges, clones, worktrees and repacking, and its own fsck.

Authors and times are always the same, so that the same work elsewhere gives the same hashes.
"""

from __future__ import annotations

import random
from pathlib import Path

from tests.mounted.applications.programs import git, need
from tests.mounted.mounts import MountedShardfs

FILES = 80
COMMITS = 4


def change_and_commit(repository: Path, rng: random.Random, number: int) -> None:
    """Write some new files, change and remove some old ones, and commit."""
    for _ in range(FILES // COMMITS):
        folder = repository / f"{rng.randrange(6)}" / f"{rng.randrange(4)}"
        folder.mkdir(parents=True, exist_ok=True)
        length = rng.choice((0, 10, 300, 4096, 30_000))
        (folder / f"{rng.randrange(40)}").write_bytes(rng.randbytes(length // 2) * 2)
    names = [path for path in sorted(repository.glob("*/*/*")) if path.is_file()]
    for path in rng.sample(names, 2):
        path.unlink()
    (repository / "last").write_text(f"{number}\n" * number)
    (repository / "last").chmod(0o755 if number % 2 else 0o644)
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "-m", f"commit {number}")


def history(folder: Path, seed: int) -> str:
    """All that a developer does with a repository and its clones; the hash it ends with."""
    rng = random.Random(seed)
    origin, clone, tree = (folder / name for name in ("origin.git", "clone", "tree"))
    git(folder, "init", "--quiet", "--bare", origin)
    git(folder, "clone", "--quiet", origin, clone)
    for number in range(COMMITS):
        change_and_commit(clone, rng, number)
    git(clone, "push", "--quiet", "origin", "main")
    git(clone, "checkout", "--quiet", "-b", "side", "HEAD~2")
    (clone / "of the side").write_bytes(rng.randbytes(5000))
    (clone / "link").symlink_to("last")
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "-m", "side")
    git(clone, "worktree", "add", "--quiet", "-b", "apart", tree, "main")
    change_and_commit(tree, rng, COMMITS)
    git(clone, "checkout", "--quiet", "main")
    git(clone, "merge", "--quiet", "--no-edit", "side")
    git(clone, "merge", "--quiet", "--no-edit", "apart")
    git(clone, "mv", "of the side", "renamed")
    git(clone, "commit", "--quiet", "-m", "renamed")
    git(clone, "tag", "-a", "-m", "tag", "v1")
    git(clone, "worktree", "remove", tree)
    assert not tree.exists()
    git(clone, "branch", "--quiet", "-D", "side", "apart")
    git(clone, "gc", "--quiet", "--aggressive", "--prune=now")
    git(clone, "push", "--quiet", "--follow-tags", "origin", "main")
    git(clone, "reset", "--quiet", "--hard", "HEAD~3")
    git(clone, "pull", "--quiet", "--ff-only")
    git(origin, "repack", "--quiet", "-a", "-d", "--write-bitmap-index")
    for repository in (origin, clone):
        git(repository, "fsck", "--full", "--strict", "--no-progress")
    assert git(clone, "status", "--porcelain") == ""
    return git(clone, "rev-parse", "HEAD")


def git_work(folder: Path, seed: int) -> None:
    """One history; what has been cloned from it without hard links is the same."""
    need("git", "git")
    end = history(folder, seed)
    again = folder / "again"
    git(folder, "clone", "--quiet", "--no-local", folder / "origin.git", again)
    assert git(again, "rev-parse", "HEAD") == end
    assert git(again, "rev-parse", "v1^{commit}") == end
    git(again, "fsck", "--full", "--strict", "--no-progress")


def test_git(mounted_shardfs: MountedShardfs, tmp_path: Path) -> None:
    git_work(mounted_shardfs.path, 1)
    end = git(mounted_shardfs.path / "clone", "rev-parse", "HEAD")
    mounted_shardfs.remount()
    for name in ("origin.git", "clone", "again"):
        git(mounted_shardfs.path / name, "fsck", "--full", "--strict", "--no-progress")
    assert git(mounted_shardfs.path / "clone", "status", "--porcelain") == ""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert history(elsewhere, 1) == end
