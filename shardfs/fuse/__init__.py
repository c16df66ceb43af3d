"""Files on top of the engine's store: what a mount does, from records to FUSE requests.

Role: import order inside the room, nothing the other way: records, door -> tables -> dirty ->
files -> orphans -> writeback -> listing -> handles -> rename, namespace, xattrs -> filesystem ->
errnos, operations -> session. Only errnos, operations and session know pyfuse3. Beside them, for
the command: fsck, inspection, control and where mounts are found.

Not here: what lies below a record or a shard (shardfs.engine), and the command line.
"""
