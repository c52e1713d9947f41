import multiprocessing
import os
import pickle
import sys
import time
import warnings
from pathlib import Path

import pytest
from cached import CHUNK, HASH, NAME, chunks, fetch, one_line

from litcam.datamodules.remote import local, open_store
from litcam.datamodules.remote.local import LocalReader, LocalStore


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / NAME).write_bytes(CHUNK)
    for file in chunks(4):
        (tmp_path / file.name).write_bytes(CHUNK)
    return tmp_path


def change(path, content):
    """Writes a file whose time differs, also where the clock of the disk is coarse."""
    path.write_bytes(content)
    later = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(later, later))


def test_a_folder(folder):
    store = open_store(folder)
    assert store.root == str(folder)
    assert fetch(store) == fetch(pickle.loads(pickle.dumps(store))) == folder / NAME
    assert store.exists(NAME) and not store.exists("litcam.json")
    change(folder / NAME, CHUNK[:-1])
    with pytest.raises(OSError, match=f"0.bin has {len(CHUNK) - 1} bytes .*litcam convert --check"):
        fetch(store)
    change(folder / NAME, CHUNK[:-1] + b"x")
    with pytest.raises(OSError, match=r"chunk-0-0.bin is damaged: .*litcam convert --check") as bad:
        fetch(store)
    one_line(bad)
    with pytest.raises(FileNotFoundError, match=r"9.bin is missing; `litcam convert --check") as no:
        store.path("train/9.bin")
    one_line(no)


def test_parts_of_files(folder):
    reader = open_store(folder).reader(chunks(6))
    assert reader.read(2, 1000, 500) == CHUNK[1000:1500]
    assert reader.read(0, 0, len(CHUNK)) == CHUNK and reader.read(1, 7, 0) == b""
    with pytest.raises(OSError, match="has 307200 bytes, and its index asks for 2 at 307199"):
        reader.read(0, len(CHUNK) - 1, 2)
    with pytest.raises(OSError, match="asks for 5 at -5"):
        reader.read(0, -5, 5)
    with pytest.raises(FileNotFoundError, match=r"5.bin is missing; `litcam convert --check"):
        reader.read(5, 0, 1)


def test_following_does_nothing(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = open_store(folder).reader(chunks(4)).follow([2, 1])
        plan.at(1, 0)
        plan.close()


def test_a_changed_file_is_checked_again(folder):
    reader = open_store(folder).reader(chunks(4))
    reader.read(1, 0, 10)
    change(folder / "train/1.bin", b"x" + CHUNK[1:])
    with pytest.raises(OSError, match=r"1.bin is damaged: .*copy it again.*--check") as bad:
        reader.read(1, 0, 10)
    one_line(bad)
    change(folder / "train/1.bin", CHUNK)
    assert reader.read(1, 0, 10) == CHUNK[:10]
    change(folder / "train/1.bin", CHUNK[:99])
    with pytest.raises(OSError, match=r"1.bin has 99 bytes instead of 307200"):
        reader.read(1, 0, 10)


class Counting(LocalStore):
    """Notes in a file each time something is checked."""

    def check(self, path, num_bytes, xxh64):
        time.sleep(0.2)
        with (self.folder / "checked").open("a") as file:
            file.write(f"{path.name}\n")
        super().check(path, num_bytes, xxh64)


def read_all(reader):
    assert all(reader.read(number, 5, 9) == CHUNK[5:14] for number in range(4))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_check_each_file_once_together(folder, method):
    reader = LocalReader(Counting(folder), chunks(4))
    processes = [
        multiprocessing.get_context(method).Process(target=read_all, args=(reader,))
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    read_all(reader)
    assert sorted((folder / "checked").read_text().split()) == [f"{n}.bin" for n in range(4)]


def test_a_pickled_reader_checks_for_itself(folder):
    reader = LocalReader(Counting(folder), chunks(4))
    read_all(reader)
    read_all(pickle.loads(pickle.dumps(reader)))
    assert len((folder / "checked").read_text().split()) == 8


def test_few_files_stay_open(folder, monkeypatch):
    monkeypatch.setattr(local, "OPEN", 2)
    reader = open_store(folder).reader(chunks(4))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        read_all(reader)
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 2
    del reader
    assert len(list(Path("/proc/self/fd").iterdir())) < before


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "train/../../x", "", "a\0b", "C:\\x"])
def test_names_stay_inside(folder, name):
    store = open_store(folder)
    with pytest.raises(ValueError, match="not inside of it; do not use this data set") as caught:
        store.path(name)
    one_line(caught)
    with pytest.raises(ValueError, match="not inside"):
        store.reader([(chunks(1)[0])._replace(name=name)])


def test_a_folder_of_links_as_hugging_face_lays_it_out(folder, tmp_path_factory):
    blobs = tmp_path_factory.mktemp("blobs")
    for name in (NAME, *(file.name for file in chunks(4))):
        blob = blobs / Path(name).name
        (folder / name).replace(blob)
        (folder / name).symlink_to(blob)
    store = open_store(folder)
    assert store.reader(chunks(4)).read(1, 0, 3) == CHUNK[:3]
    assert fetch(store).read_bytes() == CHUNK
    change(blobs / Path(NAME).name, CHUNK[:-1] + b"x")
    with pytest.raises(OSError, match=r"0.bin is damaged"):
        fetch(store)


@pytest.mark.parametrize(
    ("root", "options", "message"),
    [
        ("ftp://host/data", {}, "neither a folder nor one of s3://, gs://"),
        ("s4://bucket/data", {}, r"did you mean s3://"),
        ("s3://", {}, "names no bucket"),
        ("s3://bucket", {"cache_gb": 0}, "cache_gb must be > 0, got 0"),
    ],
)
def test_addresses_that_make_no_sense(root, options, message):
    with pytest.raises(ValueError, match=message):
        open_store(root, **options)


def test_a_remote_root_is_refused_where_there_are_no_such_sockets(monkeypatch, folder):
    import socket

    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(ValueError, match=r"root s3://bucket/x is remote, which needs Linux"):
        open_store("s3://bucket/x")
    assert open_store(folder).exists(NAME)


def test_without_file_locks(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    read_all(open_store(folder).reader(chunks(4)))


def test_little_is_imported():
    code = (
        "import sys, litcam.datamodules.remote.server, litcam.datamodules.remote.client;"
        "sys.exit(str({'torch', 'numpy', 'lightning', 'obstore', 'fcntl_'} & {*sys.modules}))"
    )
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "set()"


def test_a_hash_names_a_chunk():
    assert chunks(1)[0].xxh64 == HASH and Path(NAME).name == "chunk-0-0.bin"
