"""The `shardfs` command: thin click commands, one file each; no command imports another.

Role: turns arguments into calls of engine and fuse, and their answers into text or JSON.

Exit status, the same for every command: 0 success; 1 a finding, damage, or a failure of the
device; 2 misuse. An error is one line on standard error, "shardfs: what happened; what to do".

Not here: anything a library user would want too.
"""
