"""shardfs:// through fsspec: its own tests, and pandas, pyarrow reading and writing through it."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.dataframe
import fsspec
import pandas
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet
import pytest
from fsspec.tests.abstract import (
    AbstractCopyTests,
    AbstractFixtures,
    AbstractGetTests,
    AbstractOpenTests,
    AbstractPipeTests,
    AbstractPutTests,
)

import shardfs
from shardfs.errors import UsageError
from shardfs.library.filesystem import ShardfsFileSystem


@pytest.fixture
def table() -> Any:
    return pandas.DataFrame({"n": range(5000), "text": [f"row {n}" for n in range(5000)]})


@pytest.fixture
def written(image: Path, table: Any) -> Path:
    """An image with a table in two formats, written through fsspec."""
    options = {"device": str(image), "writable": True}
    table.to_parquet("shardfs://tables/day.parquet", storage_options=options)
    table.to_csv("shardfs://tables/day.csv", index=False, storage_options=options)
    fsspec.filesystem("shardfs", **options).close()
    return image


@pytest.fixture
def reading(written: Path) -> Iterator[ShardfsFileSystem]:
    filesystem = fsspec.filesystem("shardfs", device=str(written))
    yield filesystem
    filesystem.close()


def test_pandas(reading: ShardfsFileSystem, written: Path, table: Any) -> None:
    options = {"device": str(written)}
    assert pandas.read_parquet("shardfs://tables/day.parquet", storage_options=options).equals(
        table
    )
    assert pandas.read_csv("shardfs:///tables/day.csv", storage_options=options).equals(table)


def test_a_chained_address(written: Path, table: Any) -> None:
    for device in (str(written), f"file://{written}"):
        with fsspec.open(f"shardfs://tables/day.csv::{device}", "rt") as file:
            assert file.readline() == "n,text\n"
        filesystem, path = fsspec.url_to_fs(f"shardfs://tables/day.csv::{device}")
        assert path == "/tables/day.csv"
        filesystem.close()
    with pytest.raises(UsageError, match="local file"):
        fsspec.open("shardfs://a::memory://disk.img", "rb").open()
    with pytest.raises(UsageError, match="device"):
        fsspec.filesystem("shardfs")


def test_pyarrow(reading: ShardfsFileSystem, table: Any) -> None:
    arrow = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(reading))
    found = pyarrow.parquet.read_table("/tables/day.parquet", filesystem=arrow, columns=["n"])
    assert found.column("n").to_pylist() == list(range(5000))
    dataset = pyarrow.dataset.dataset(
        "/tables", filesystem=reading, format="parquet", exclude_invalid_files=True
    )
    assert dataset.count_rows(filter=pyarrow.dataset.field("n") >= 4990) == 10
    infos = arrow.get_file_info(pyarrow.fs.FileSelector("/tables"))
    assert sorted(info.base_name for info in infos) == ["day.csv", "day.parquet"]


@pytest.mark.parametrize("scheduler", ["synchronous", "threads", "processes"])
def test_dask(written: Path, table: Any, scheduler: str) -> None:
    """Lazily, in several partitions, which threads or other processes read at the same time."""
    options = {"device": str(written), "shared": True}
    lines = dask.dataframe.read_csv(
        "shardfs://tables/day.csv", blocksize=20_000, storage_options=options
    )
    assert lines.npartitions > 2
    pages = dask.dataframe.read_parquet("shardfs://tables/day.parquet", storage_options=options)
    for found in (lines, pages):
        read = found.compute(scheduler=scheduler).reset_index(drop=True)
        assert read["n"].tolist() == table["n"].tolist()
        assert read["text"].tolist() == table["text"].tolist()
        assert found["n"].sum().compute(scheduler=scheduler) == table["n"].sum()


@pytest.mark.filterwarnings("ignore:The inplace keyword:DeprecationWarning")  # dask's own
def test_dask_writes(image: Path, table: Any) -> None:
    options = {"device": str(image), "writable": True}
    whole = dask.dataframe.from_pandas(table, npartitions=3)  # type: ignore[no-untyped-call]  # dask
    with dask.config.set(scheduler="synchronous"):
        whole.to_parquet("shardfs://days", storage_options=options)
    fsspec.filesystem("shardfs", **options).close()
    read = pandas.read_parquet("shardfs://days", storage_options={"device": str(image)})
    assert read["n"].tolist() == table["n"].tolist()


def test_parts_of_files(reading: ShardfsFileSystem) -> None:
    whole = reading.cat_file("tables/day.csv")
    assert reading.cat_file("tables/day.csv", 5, 20) == whole[5:20]
    assert reading.cat_file("tables/day.csv", -10) == whole[-10:]
    ranges = reading.cat_ranges(["tables/day.csv"] * 2, [0, 100], [10, 200])
    assert ranges == [whole[:10], whole[100:200]]
    assert reading.glob("/tables/*.csv") == ["/tables/day.csv"]
    assert reading.du("/tables") == sum(reading.info(path)["size"] for path in reading.find("/"))
    assert reading.modified("tables/day.csv").year >= 2020
    assert reading.fsid.startswith("shardfs_")


def test_it_travels_to_other_processes(written: Path) -> None:
    one = fsspec.filesystem("shardfs", device=str(written), shared=True)
    ShardfsFileSystem.clear_instance_cache()
    two = pickle.loads(pickle.dumps(one))
    assert two is not one and two.cat_file("tables/day.csv") == one.cat_file("tables/day.csv")
    one.close()
    two.close()


def test_transactions(image: Path) -> None:
    filesystem = fsspec.filesystem("shardfs", device=str(image), writable=True)
    filesystem.pipe_file("/kept", b"before")
    with pytest.raises(ZeroDivisionError), filesystem.transaction:
        with filesystem.open("/kept", "wb") as file:
            file.write(b"after")
        assert filesystem.cat_file("/kept") == b"before"
        raise ZeroDivisionError
    assert (filesystem.cat_file("/kept"), filesystem.ls("/", False)) == (b"before", ["/kept"])
    with filesystem.transaction:
        for name in "ab":
            with filesystem.open(f"/{name}", "wb") as file:
                file.write(name.encode() * 3_000_000)
        assert not filesystem.exists("/a")
    assert filesystem.ls("/", False) == ["/a", "/b", "/kept"]
    filesystem.close()
    with shardfs.open(image) as disk:
        assert disk.read_bytes("b") == b"b" * 3_000_000


def test_moving_is_one_step(image: Path) -> None:
    filesystem = fsspec.filesystem("shardfs", device=str(image), writable=True)
    filesystem.makedirs("/a/b/c")
    filesystem.touch("/a/b/file")
    ino = filesystem.info("/a/b/file")["ino"]
    filesystem.mv("/a/b", "/moved", recursive=True)
    assert filesystem.info("/moved/file")["ino"] == ino and not filesystem.exists("/a/b")
    filesystem.disk.symlink("moved/file", "/link")
    filesystem.disk.symlink("none", "/dead")
    kinds = {each["name"]: each["type"] for each in filesystem.ls("/")}
    assert kinds == {"/a": "directory", "/moved": "directory", "/link": "file", "/dead": "link"}
    filesystem.rm("/moved", recursive=True)
    assert filesystem.find("/", withdirs=True) == ["/", "/a", "/dead", "/link"]
    filesystem.close()


class Fixtures(AbstractFixtures):
    """What the tests of fsspec ask for."""

    @pytest.fixture
    def fs(self, image: Path) -> Iterator[ShardfsFileSystem]:
        filesystem = fsspec.filesystem("shardfs", device=str(image), writable=True)
        yield filesystem
        filesystem.close()

    @pytest.fixture
    def fs_path(self, fs: ShardfsFileSystem) -> str:
        fs.mkdir("/base")
        return "/base"

    @pytest.fixture
    def local_path(self, tmp_path: Path) -> str:
        path = tmp_path / "local"
        path.mkdir()
        return str(path)

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return True


class TestCopy(Fixtures, AbstractCopyTests):
    """Copying inside."""


class TestGet(Fixtures, AbstractGetTests):
    """Copying out."""


class TestPut(Fixtures, AbstractPutTests):
    """Copying in."""


class TestOpen(Fixtures, AbstractOpenTests):
    """Opening."""


class TestPipe(Fixtures, AbstractPipeTests):
    """Whole files."""
