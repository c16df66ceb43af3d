"""Mounts for applications: more time than other mounted tests have, and a larger device.

Applications take many calls for what they do. A limit is there against hangs; on a machine that
is busy with other work they are allowed to be slow.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mounted.conftest import ImageFactory, MountFactory
from tests.mounted.mounts import MountedShardfs

IMAGE_BYTES = 512 * 1024 * 1024
TEST_SECONDS_MAX = 900
MOUNT_SECONDS_MAX = 800.0
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test in this folder has this time limit, if it has no other."""
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TEST_SECONDS_MAX))


@pytest.fixture
def mounted_shardfs(make_image: ImageFactory, mount_shardfs: MountFactory) -> MountedShardfs:
    """A fresh shardfs, mounted where every user can get to; verified by fsck at the end."""
    image = make_image(IMAGE_BYTES)
    return mount_shardfs(image, for_everybody=True, seconds_max=MOUNT_SECONDS_MAX)
