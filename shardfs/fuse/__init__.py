"""Files on top of the engine's store: what a mount does, from records to FUSE requests.

Role: import order inside the room, nothing the other way: records, door -> tables -> files ->
dirty -> orphans, writeback -> handles -> namespace, xattrs, listing -> errnos -> operations ->
session. Only operations, errnos and session know pyfuse3.

Not here: what lies below a record or a shard (shardfs.engine), and the command line.
"""
