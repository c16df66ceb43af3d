"""The files on an unmounted device or image, from Python, without mounting it.

    with shardfs.open("disk.img") as disk:
        print(disk.read_bytes("/photos/001.jpg")[:4], disk.listdir("/photos"))

Role: import order inside the room, nothing the other way: volume -> portal -> files -> disk ->
filesystem. `volume` is for trio programs, `disk` for all others, `filesystem` for fsspec and with
it for pandas, pyarrow and dask.

Not here: mounting (shardfs.fuse.session), the key-value store below (shardfs.engine).
"""

from shardfs.library.disk import Disk
from shardfs.library.volume import FileFacts, Volume, open_volume

__all__ = ["Disk", "FileFacts", "Volume", "open_volume"]
