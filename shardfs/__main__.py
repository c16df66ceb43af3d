"""Lets `python -m shardfs` be the shardfs command.

Role: for installations whose scripts are not on the path, and for the mount's own children.

Not here: the command (cli/main.py).
"""

from shardfs.cli.main import main

main()
