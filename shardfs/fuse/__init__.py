"""Files on top of the engine's store: what a mount does, from records to FUSE requests.

Role: files on a store, and a mount's way to its users. The import order inside the room is in
docs/design.md. Only operations, errnos and session know pyfuse3.

Not here: what lies below a record or a shard (shardfs.engine), and the command line.
"""
