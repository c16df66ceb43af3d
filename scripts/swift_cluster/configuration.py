"""Swift's configuration files for a cluster on one machine.

Role: texts, and nothing else. What differs from Swift's defaults is small on purpose: ports, paths,
and times that are shorter because a test should not wait for minutes.
"""

from __future__ import annotations

from typing import Final

from scripts.swift_cluster.layout import ADDRESS, KINDS, Layout

ACCESS_KEY: Final = "test:tester"
SECRET_KEY: Final = "testing"
"""For tests on the loopback interface, where nobody else is let in."""
_PIPELINE: Final = (
    "catch_errors gatekeeper healthcheck proxy-logging cache listing_formats bulk s3api tempauth "
    "copy slo dlo versioned_writes symlink proxy-logging proxy-server"
)
_FILTERS: Final = {
    "catch_errors": "",
    "gatekeeper": "",
    "healthcheck": "",
    "proxy-logging": "use = egg:swift#proxy_logging",
    "listing_formats": "",
    "bulk": "",
    "s3api": "s3_acl = false\nlocation = us-east-1\ncheck_bucket_owner = false",
    "tempauth": f"user_{ACCESS_KEY.replace(':', '_')} = {SECRET_KEY} .admin",
    "copy": "",
    "slo": "",
    "dlo": "",
    "versioned_writes": "allow_versioned_writes = true",
    "symlink": "",
}
_DAEMONS: Final = {
    "account": ("replicator", "auditor", "reaper"),
    "container": ("replicator", "updater", "auditor", "sharder"),
    "object": ("replicator", "updater", "auditor", "expirer"),
}
# The proxy waits longer than a container server does for an account server: else making a bucket
# fails when one disk hangs.
_PROXY_PATIENCE_S: Final = 4
_OBJECT_LINES: Final = "network_chunk_size = 1048576\n"
"""Object servers write to the disk in such pieces: each write is a request of FUSE."""
_SERVER_PATIENCE_S: Final = 2


def swift_conf() -> str:
    """What all of Swift's programs share."""
    return (
        "[swift-hash]\nswift_hash_path_prefix = shardfs\nswift_hash_path_suffix = demo\n"
        "[storage-policy:0]\nname = gold\ndefault = yes\n"
    )


def proxy_conf(layout: Layout) -> str:
    """The proxy, which speaks S3."""
    parts = [
        f"[DEFAULT]\nbind_ip = {ADDRESS}\nbind_port = {layout.ports['proxy']}\nuser = root\n"
        f"workers = 0\nswift_dir = {layout.settings}\n",
        f"[pipeline:main]\npipeline = {_PIPELINE}\n",
        "[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\n"
        f"allow_account_management = true\nnode_timeout = {_PROXY_PATIENCE_S}\nconn_timeout = 1\n"
        "error_suppression_interval = 5\nerror_suppression_limit = 3\n",
        f"[filter:cache]\nuse = egg:swift#memcache\n"
        f"memcache_servers = {ADDRESS}:{layout.ports['memcached']}\n",
    ]
    for name, lines in _FILTERS.items():
        use = lines if lines.startswith("use = ") else f"use = egg:swift#{name}\n{lines}"
        parts.append(f"[filter:{name}]\n{use}\n")
    return "\n".join(parts)


def server_conf(layout: Layout, kind: str, disk: str) -> str:
    """One disk's account, container or object server, and the daemons beside it."""
    parts = [
        f"[DEFAULT]\nbind_ip = {ADDRESS}\nbind_port = {layout.ports[f'{kind}-{disk}']}\n"
        f"user = root\nworkers = 0\nswift_dir = {layout.settings}\n"
        f"devices = {layout.devices(kind)}\nmount_check = true\n"
        f"recon_cache_path = {layout.cache}\n",
        f"[pipeline:main]\npipeline = {kind}-server\n",
        f"[app:{kind}-server]\nuse = egg:swift#{kind}\nnode_timeout = {_SERVER_PATIENCE_S}\n"
        "conn_timeout = 1\n" + (_OBJECT_LINES if kind == "object" else ""),
    ]
    rsync = f"rsync://{{replication_ip}}:{layout.ports['rsync']}/{kind}"
    for daemon in _DAEMONS[kind]:
        parts.append(
            f"[{kind}-{daemon}]\nrsync_module = {rsync}\nconn_timeout = 1\nnode_timeout = 5\n"
            f"rsync_timeout = 20\nhttp_timeout = 10\nlockup_timeout = 60\n"
        )
    return "\n".join(parts)


def internal_client_conf() -> str:
    """For daemons that call the proxy's code themselves (the expirer)."""
    return (
        "[DEFAULT]\n[pipeline:main]\npipeline = catch_errors proxy-logging cache proxy-server\n"
        "[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\n"
        "[filter:cache]\nuse = egg:swift#memcache\n"
        "[filter:proxy-logging]\nuse = egg:swift#proxy_logging\n"
        "[filter:catch_errors]\nuse = egg:swift#catch_errors\n"
    )


def rsyncd_conf(layout: Layout) -> str:
    """The daemon through which replicators bring files to other disks."""
    head = (
        f"uid = root\ngid = root\nuse chroot = no\naddress = {ADDRESS}\n"
        f"port = {layout.ports['rsync']}\npid file = {layout.cache / 'rsyncd.pid'}\n"
        f"log file = {layout.logs / 'rsyncd.log'}\n"
    )
    modules = [
        f"[{kind}]\npath = {layout.devices(kind)}\nread only = false\nmax connections = 25\n"
        f"lock file = {layout.cache / kind}.lock\n"
        for kind in KINDS
    ]
    return head + "".join(modules)


def write_all(layout: Layout) -> None:
    """Write every file below layout.settings."""
    files = {
        "swift.conf": swift_conf(),
        "proxy-server.conf": proxy_conf(layout),
        "internal-client.conf": internal_client_conf(),
        "rsyncd.conf": rsyncd_conf(layout),
    }
    for kind in KINDS:
        for disk in layout.disks:
            files[f"{kind}-{disk}.conf"] = server_conf(layout, kind, disk)
    for name, text in files.items():
        (layout.settings / name).write_text(text)
