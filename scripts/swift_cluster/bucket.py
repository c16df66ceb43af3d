"""What an S3 client does with one bucket, remembering what was acknowledged.

Invariants:
    I1. `known` has what every acknowledged call has left; a call that failed leaves its object in
        `unsure`, where either state is right until a later call succeeds.
"""

from __future__ import annotations

import hashlib
import random
from typing import Any, Final

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from scripts.swift_cluster.configuration import ACCESS_KEY, SECRET_KEY

_MISSING: Final = frozenset({"NoSuchKey", "404", "NotFound"})
_PART_BYTES: Final = 8 << 20


def client(endpoint: str, *, retries: int = 3, patience_s: int = 60) -> Any:
    """A boto3 client for a cluster's proxy."""
    # A part is not hashed a second time, by a checksum that Swift does not know.
    checksums = {"request_checksum_calculation": "when_required"}
    checksums["response_checksum_validation"] = "when_required"
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path"},
        retries={"total_max_attempts": retries, "mode": "standard"},
        read_timeout=patience_s,
        proxies={},
        **checksums,
    )
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=config,
    )


class Bucket:
    """One bucket and what is known to be in it.

    Args:
        endpoint: of the proxy.
        name: at least three letters.
        seed: of the contents.
    """

    def __init__(self, endpoint: str, name: str, *, seed: int = 1) -> None:
        self.name = name
        self.known: dict[str, str] = {}
        """Key -> MD5 of its content."""
        self.unsure: set[str] = set()
        self.refused = 0
        """Calls that failed."""
        self._s3 = client(endpoint)
        self._random = random.Random(seed)

    def create(self) -> None:
        """Make the bucket."""
        self._s3.create_bucket(Bucket=self.name)

    def content(self, length: int) -> bytes:
        """Bytes that nobody can guess or compress."""
        return self._random.randbytes(length)

    def put(self, key: str, content: bytes) -> bool:
        """Store an object; whether that was acknowledged."""
        metadata = {"mark": key, "length": str(len(content))}
        if not self._done(key, "put_object", Body=content, Metadata=metadata):
            return False
        self.known[key] = hashlib.md5(content).hexdigest()
        return True

    def put_large(self, key: str, content: bytes) -> None:
        """Store an object in parts, several at a time."""
        import io

        transfer = TransferConfig(multipart_chunksize=_PART_BYTES, max_concurrency=4)
        self._s3.upload_fileobj(io.BytesIO(content), self.name, key, Config=transfer)
        self.known[key] = hashlib.md5(content).hexdigest()

    def copy(self, key: str, new: str) -> None:
        """Have the store copy an object."""
        source = {"Bucket": self.name, "Key": key}
        self._s3.copy_object(Bucket=self.name, Key=new, CopySource=source)
        self.known[new] = self.known[key]

    def delete(self, key: str) -> bool:
        """Remove an object; whether that was acknowledged."""
        if not self._done(key, "delete_object"):
            return False
        self.known.pop(key, None)
        return True

    def get(self, key: str) -> bytes | None:
        """An object's content, or None if there is none."""
        try:
            answer = self._s3.get_object(Bucket=self.name, Key=key)
            assert answer["Metadata"].get("mark", key) == key or key.startswith("copy")
            return bytes(answer["Body"].read())
        except ClientError as error:
            if error.response["Error"]["Code"] in _MISSING:
                return None
            raise

    def get_range(self, key: str, first: int, last: int) -> bytes:
        """Bytes `first` to `last` of an object, both included."""
        answer = self._s3.get_object(Bucket=self.name, Key=key, Range=f"bytes={first}-{last}")
        return bytes(answer["Body"].read())

    def names(self) -> set[str]:
        """Every key that a listing shows."""
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return {item["Key"] for page in pages for item in page.get("Contents", ())}

    def differences(self) -> list[str]:
        """Keys that do not read as they were acknowledged, with what is wrong."""
        found = []
        for key, digest in sorted(self.known.items()):
            if key in self.unsure:
                continue
            try:
                content = self.get(key)
            except (ClientError, BotoCoreError) as error:
                found.append(f"{key}: {error}")
                continue
            if content is None:
                found.append(f"{key}: lost")
            elif hashlib.md5(content).hexdigest() != digest:
                found.append(f"{key}: other content")
        return found

    def remove(self) -> None:
        """Remove every object and the bucket."""
        for key in self.names():
            self._s3.delete_object(Bucket=self.name, Key=key)
        self._s3.delete_bucket(Bucket=self.name)
        self.known.clear()

    def _done(self, key: str, call: str, **arguments: Any) -> bool:
        try:
            getattr(self._s3, call)(Bucket=self.name, Key=key, **arguments)
        except (ClientError, BotoCoreError):
            self.refused += 1
            self.unsure.add(key)
            return False
        self.unsure.discard(key)
        return True
