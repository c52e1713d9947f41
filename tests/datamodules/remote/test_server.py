"""The cache server with what uses it: processes that read at once, kills, small caches."""

import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cached import CHUNK, HASH, KEY, NAME, chunks, fetch, files_of, here, one_line, wait_for
from s3 import Moto, refuse, send, set_environment, stall

from litcam.datamodules.remote import connection, open_store
from litcam.datamodules.remote.connection import SERVER, Connection, socket_path
from litcam.datamodules.remote.policy import Policy

FORKS = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def pid_of(store):
    """The id of the process that serves a store, which it says to who says hello."""
    line = Connection(store.cache_dir)
    line.send(
        {
            **{"do": "hello", "root": "x", "url": "s3://x", "folder": store.folder.name},
            **{"cache_gb": None, "environment": {}, "kept": []},
        }
    )
    pid = line.receive()["pid"]
    line.close()
    return pid


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def small(tmp_path, num_chunks, name="cache"):
    """A store with room for so many chunks."""
    return open_store("s3://bucket/data", tmp_path / name, num_chunks * len(CHUNK) / 1e9)


def test_fetches_once_through_plain_http(moto, store, tmp_path):
    before = moto.requests(KEY)
    path = fetch(store)
    assert path.read_bytes() == CHUNK
    assert path.is_relative_to(tmp_path / "cache")
    again = open_store("s3://bucket/data/", tmp_path / "cache")
    assert fetch(store) == fetch(pickle.loads(pickle.dumps(store))) == fetch(again) == path
    assert moto.requests(KEY) == before + 1
    assert store.root == "s3://bucket/data"
    assert open_store(Path("s3://bucket/data"), tmp_path / "cache").folder == store.folder


def test_a_file_without_a_hash_is_fetched_once_for_each_store(moto, tmp_path):
    moto.put("data/litcam.json", b"old")
    first = open_store("s3://bucket/data", tmp_path)
    assert first.exists("litcam.json") and not first.exists("nothing.json")
    moto.put("data/litcam.json", b"new")
    assert pickle.loads(pickle.dumps(first)).path("litcam.json").read_bytes() == b"old"
    assert open_store("s3://bucket/data", tmp_path).path("litcam.json").read_bytes() == b"new"


def test_errors_keep_their_kind(moto, store, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="is missing") as caught:
        store.path("val/chunk-9-9.bin")
    one_line(caught)
    with pytest.raises(ValueError, match="not inside of it"):
        store.path("../../x")
    with pytest.raises(ValueError, match="not inside of it"):
        store.need("../../x", None, None)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"takes no more files .*another cache_dir") as caught:
        fetch(open_store("s3://bucket/data", tmp_path / "file"))
    one_line(caught)
    monkeypatch.setenv("LITCAM_STORE_TIMEOUT", "5 min")
    with pytest.raises(ValueError, match="LITCAM_STORE_TIMEOUT must be seconds, got '5 min'"):
        open_store("s3://bucket/data", tmp_path / "other").path("litcam.json")


def test_a_damaged_copy_in_the_cache_is_fetched_again(scripted, store, tmp_path):
    scripted.answers += [send(CHUNK)]
    fetch(store).write_bytes(b"x" * len(CHUNK))
    assert fetch(open_store("s3://bucket/data", tmp_path / "cache")).read_bytes() == CHUNK
    assert len(scripted.asked) == 2
    # Nor does the next server trust what it finds.
    os.kill(pid_of(store), signal.SIGKILL)
    (store.folder / NAME).write_bytes(b"y" * len(CHUNK))
    assert fetch(store).read_bytes() == CHUNK
    assert len(scripted.asked) == 3
    os.kill(pid_of(store), signal.SIGKILL)
    assert fetch(store).read_bytes() == CHUNK
    assert len(scripted.asked) == 3


def test_a_link_in_the_cache_leads_nowhere(scripted, store, tmp_path):
    scripted.answers += [send(CHUNK)]
    (tmp_path / "victim").mkdir()
    store.folder.mkdir(parents=True)
    (store.folder / "train").symlink_to(tmp_path / "victim")
    with pytest.raises(ValueError, match="leads out of the folder"):
        fetch(store)
    assert list((tmp_path / "victim").iterdir()) == []


def read_everything(reader, times=1):
    for _ in range(times):
        for number in range(len(reader.files)):
            assert reader.read(number, number, 1000) == CHUNK[number : number + 1000]


@FORKS
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_fetch_once(scripted, store, method):
    scripted.answers += [send(CHUNK, wait=0.3)]
    reader = store.reader(chunks(3))
    reader.read(0, 0, 1)  # a connection that must not be taken over
    workers = [
        multiprocessing.get_context(method).Process(target=read_everything, args=(reader,))
        for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    read_everything(reader)
    assert sorted(scripted.asked) == [f"/bucket/data/train/{n}.bin" for n in range(3)]


def test_no_thread_and_no_obstore_in_the_training_process(scripted, store):
    before = set(threading.enumerate())
    scripted.answers += [send(CHUNK)]
    reader = store.reader(chunks(3))
    plan = reader.follow(range(3))
    read_everything(reader)
    plan.close()
    assert {t for t in threading.enumerate() if "process_request" not in t.name} <= before
    code = "import sys; from litcam.datamodules.remote import open_store as o;"
    code += f"o('s3://bucket/data', {str(store.cache_dir)!r}).path('train/0.bin');"
    code += "sys.exit('obstore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_killed_server_harms_nobody(scripted, store):
    scripted.answers += [send(CHUNK)]
    reader = store.reader(chunks(9))
    plan = reader.follow(range(6))
    wait_for(lambda: here(store) == set(range(6)))
    first = pid_of(store)
    os.kill(first, signal.SIGKILL)
    read_everything(reader)
    second = pid_of(store)
    assert second != first
    # While somebody waits, and what it was told of the plan is told again.
    for number in range(9):
        (store.folder / f"train/{number}.bin").unlink()
    scripted.answers[:] = [send(CHUNK, wait=0.5)]
    timer = threading.Timer(0.3, lambda: os.kill(second, signal.SIGKILL))
    timer.start()
    assert reader.read(7, 0, 4) == CHUNK[:4]
    timer.join()
    wait_for(lambda: here(store) >= set(range(6)))
    os.kill(pid_of(store), signal.SIGKILL)
    plan.at(2, 1)
    plan.close()


def test_what_a_killed_server_leaves_is_removed(scripted, store):
    scripted.answers += [stall(CHUNK[:200_000], len(CHUNK)), send(CHUNK)]
    thread = threading.Thread(target=fetch, args=(store,))
    thread.start()
    wait_for(lambda: list(store.folder.rglob("*.part")))
    os.kill(pid_of(store), signal.SIGKILL)
    thread.join(30)
    assert files_of(store) == ["chunk-0-0.bin"]


def test_a_server_ends_when_nobody_needs_it(scripted, store):
    scripted.answers += [send(CHUNK)]
    fetch(store)
    pid = pid_of(store)
    time.sleep(2.5)
    assert alive(pid)  # this process is connected
    store._hang_up()
    wait_for(lambda: not alive(pid), seconds=10)
    assert not socket_path(store.cache_dir).exists()
    assert fetch(store).read_bytes() == CHUNK


def test_a_hundred_find_one_server(scripted, tmp_path):
    scripted.answers += [send(CHUNK)]
    stores = [open_store("s3://bucket/data", tmp_path) for _ in range(30)]
    threads = [threading.Thread(target=fetch, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({pid_of(store) for store in stores}) == 1
    assert len(scripted.asked) == 1


def test_the_socket_is_private_and_its_path_short(tmp_path, monkeypatch):
    path = socket_path(tmp_path)
    assert len(str(path)) < 100 and path.parent.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(connection.tempfile, "gettempdir", lambda: str(tmp_path / ("x" * 120)))
    assert len(str(socket_path(tmp_path))) < 100
    monkeypatch.setattr(connection.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(connection, "LONGEST_PATH", 1000)
    (tmp_path / f"litcam-{os.getuid()}").mkdir(mode=0o755)
    (tmp_path / f"litcam-{os.getuid()}").chmod(0o755)
    with pytest.raises(OSError, match="must be a folder of yours alone"):
        socket_path(tmp_path)


def test_a_server_that_cannot_start_says_why(tmp_path, monkeypatch, scripted):
    monkeypatch.setattr(connection, "SERVER", "litcam.datamodules.remote.no_such_module")
    with pytest.raises(OSError, match=r"does not start: .*No module named .*no_such_module") as no:
        open_store("s3://bucket/data", tmp_path).path("litcam.json")
    one_line(no)


# Stores and their environments


def test_one_server_for_several_stores_and_logins(scripted, tmp_path, monkeypatch):
    refused = refuse(403, "AccessDenied")

    def by_key(handler):
        (send(CHUNK) if "good" in handler.headers["Authorization"] else refused)(handler)

    scripted.answers += [by_key]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "bad")
    bad = open_store("s3://bucket/data", tmp_path)
    with pytest.raises(PermissionError):
        fetch(bad)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "good")
    good = open_store("s3://bucket/data", tmp_path)
    assert fetch(good).read_bytes() == CHUNK
    assert pid_of(good) == pid_of(bad)
    words = Path(f"/proc/{pid_of(good)}/cmdline").read_text()
    assert "secret" not in words and SERVER in words
    log = socket_path(good.cache_dir).with_suffix(".log").read_text()
    assert log == ""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert open_store("s3://bucket/data", tmp_path).folder != good.folder


def test_one_without_a_login_does_not_stop_the_others(scripted, tmp_path, monkeypatch):
    def by_key(handler):
        time.sleep(0.5)
        ok = "good" in handler.headers["Authorization"]
        (send(CHUNK) if ok else refuse(403, "AccessDenied"))(handler)

    scripted.answers += [by_key]
    said = []

    def try_it(store):
        try:
            said.append(fetch(store).exists())
        except PermissionError:
            said.append("refused")

    threads = []
    for key in ("bad", "good"):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        store = open_store("s3://bucket/data", tmp_path)
        store._connected()
        threads.append(threading.Thread(target=try_it, args=(store,)))
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join(30)
    assert said == ["refused", True]


# A store that is away


def test_goes_on_when_the_store_is_back(tmp_path, monkeypatch):
    pytest.importorskip("moto")
    server = Moto(tmp_path)
    try:
        server.put(KEY, CHUNK)
        set_environment(monkeypatch, server.url)
        store = open_store("s3://bucket/data", tmp_path / "cache")
        os.kill(server.process.pid, signal.SIGSTOP)
        server.process.kill()
        server.process.wait()
        found = []
        thread = threading.Thread(target=lambda: found.append(fetch(store)))
        thread.start()
        time.sleep(1)
        assert thread.is_alive()
        with socket.socket() as held:  # nothing answers until the bucket is there again
            held.bind(("127.0.0.1", 0))
        server.command, plain = lambda: refill(server.port), server.command
        server.start()
        thread.join(60)
        assert found[0].read_bytes() == CHUNK
        server.command = plain
    finally:
        server.stop()


def refill(port):
    """moto that has the chunk before it listens, as a store has that comes back."""
    code = (
        "from moto.s3.models import s3_backends; from moto.server import main;"
        "backend = s3_backends['123456789012']['aws'];"
        "backend.create_bucket('bucket', 'us-east-1');"
        f"backend.put_object('bucket', {KEY!r}, bytes(range(256)) * 1200);"
        f"main(['-H', '127.0.0.1', '-p', '{port}'])"
    )
    return [sys.executable, "-c", code]


def test_a_store_that_stays_away(store, monkeypatch):
    set_environment(monkeypatch, "http://127.0.0.1:1")
    monkeypatch.setenv("LITCAM_STORE_TIMEOUT", "2")
    monkeypatch.setenv("LITCAM_STORE_WARN_AFTER", "0.3")
    started = time.monotonic()
    with (
        pytest.warns(UserWarning, match=r"chunk-0-0.bin: the store does not answer .*s more"),
        pytest.raises(OSError, match=r"s3://bucket/data/.* did not answer for \d+ s") as caught,
    ):
        fetch(store)
    assert 2 <= time.monotonic() - started < 60
    assert "--ckpt_path last" in one_line(caught)


# What is fetched ahead, and what is evicted


def test_prefetching_runs_ahead_and_goes_on_after_errors(scripted, store):
    scripted.answers += [refuse(503), send(CHUNK)]
    reader = store.reader(chunks(80))
    plan = reader.follow(range(80))
    ahead = Policy().ahead
    wait_for(lambda: here(store) == set(range(ahead)))
    plan.at(5, 2)
    wait_for(lambda: here(store) == set(range(ahead + 5)))
    plan.close()
    time.sleep(0.3)
    assert here(store) == set(range(ahead + 5))
    assert len(scripted.asked) == ahead + 6


def test_a_small_cache_is_bounded_and_what_is_needed_stays(scripted, tmp_path):
    scripted.answers += [send(CHUNK, wait=0.01)]
    store = small(tmp_path, 6)
    reader, peak, done = store.reader(chunks(40)), [], threading.Event()

    def watch():
        while not done.is_set():
            found = [p for p in store.folder.rglob("*.*") if p.suffix in (".bin", ".part")]
            sizes = []
            for path in found:
                try:
                    sizes.append(path.stat().st_size)
                except FileNotFoundError:
                    break
            else:
                peak.append(sum(sizes))
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    plan = reader.follow(range(40))
    for number in range(40):
        plan.at(min(40, number + 3), number)
        assert reader.read(number, 0, 9) == CHUNK[:9]
    done.set()
    watcher.join()
    assert len(scripted.asked) == 40  # none twice
    assert max(peak) <= 6 * len(CHUNK) + len(CHUNK)  # a file is counted twice while it is renamed
    wait_for(lambda: len(here(store)) <= 6)


def test_a_lower_budget_evicts_what_earlier_runs_left_and_nothing_else(scripted, tmp_path):
    scripted.answers += [send(CHUNK)]
    (tmp_path / "cache/mine").mkdir(parents=True)
    (tmp_path / "cache/mine/photo.bin").write_bytes(CHUNK)
    read_everything(open_store("s3://bucket/old", tmp_path / "cache").reader(chunks(5)))
    store = small(tmp_path, 3)
    store.path("litcam.json")
    old = open_store("s3://bucket/old", tmp_path / "cache").folder
    read_everything(store.reader(chunks(1)))
    total = len(list(old.rglob("*.bin"))) + len(here(store))
    assert total <= 2 and "litcam.json" in files_of(store)
    assert (tmp_path / "cache/mine/photo.bin").exists()


def test_a_folder_of_an_older_litcam_counts_too(scripted, tmp_path):
    scripted.answers += [send(CHUNK)]
    store = small(tmp_path, 3)
    (store.folder / "train").mkdir(parents=True)
    for number in range(10):  # no server has been here: its mark is missing
        (store.folder / f"train/{number}.bin").write_bytes(CHUNK)
    store.reader(chunks(12)).read(11, 0, 1)
    wait_for(lambda: len(here(store)) <= 3)
    assert 11 in here(store)


@pytest.mark.parametrize("room", [0.5, 1, 2])
def test_a_cache_for_less_than_what_is_read_at_once(scripted, tmp_path, room):
    scripted.answers += [send(CHUNK)]
    store = small(tmp_path, room)
    readers = [pickle.loads(pickle.dumps(store)).reader(chunks(5)) for _ in range(4)]
    failures = []

    def work(reader):
        try:
            read_everything(reader, times=3)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(reader,)) for reader in readers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    wait_for(lambda: len(here(store)) <= max(1, room))


def test_warns_of_a_small_disk(scripted, store):
    scripted.answers += [refuse(404)]
    huge = [chunks(1)[0]._replace(num_bytes=10**18)]
    with pytest.warns(UserWarning, match=r"less room than the 1000000000.0 GB .* cache_gb"):
        store.reader(huge).follow([0])


# Two nodes on one folder

TWO = """
import random, sys, time
from pathlib import Path
from litcam.datamodules.remote import StoredFile, connection, open_store
here, cache, name, num_bytes, xxh64 = sys.argv[1:]
connection.tempfile.gettempdir = lambda: here  # what another node's sockets and locks would be
chunk = bytes(range(256)) * 1200
store = open_store("s3://bucket/data", cache, 4.5 * len(chunk) / 1e9)
files = [StoredFile(f"train/{n}.bin", int(num_bytes), xxh64) for n in range(12)]
reader, order = store.reader(files), random.Random(name)
for epoch in range(4):
    numbers = order.sample(range(12), 12)
    plan = reader.follow(numbers)
    for place, number in enumerate(numbers):
        plan.at(min(12, place + 2), place)
        for _ in range(3):
            assert reader.read(number, 500, 3000) == chunk[500:3500]
    plan.close()
"""


def test_two_nodes_without_common_locks_share_a_folder(scripted, tmp_path):
    scripted.answers += [send(CHUNK, wait=0.01)]
    nodes = []
    for name in "ab":
        # In /tmp, where the path of a socket is short enough.
        (own := Path("/tmp", f"litcam-test-{os.getpid()}-{name}")).mkdir()
        words = [str(own), str(tmp_path / "cache"), name, str(len(CHUNK)), HASH]
        command = [sys.executable, "-W", "error", "-c", TWO, *words]
        nodes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    said = [node.communicate(timeout=100)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    servers = [
        len(list(Path("/tmp", f"litcam-test-{os.getpid()}-{n}").rglob("*.log"))) for n in "ab"
    ]
    assert servers == [1, 1]
    time.sleep(2)
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_a_network_folder_is_named_once(scripted, tmp_path, monkeypatch):
    from litcam.datamodules.remote import names

    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"/dev/sda / ext4 rw 0 0\nhost:/home {tmp_path} nfs4 rw 0 0\n"
        f"/dev/sdb {tmp_path}/local\\040disk xfs rw 0 0\n"
    )
    monkeypatch.setattr(names, "MOUNTS", mounts)
    assert names.network_folder(tmp_path / "cache") == "nfs4"
    assert names.network_folder(tmp_path / "local disk/cache") == ""
    assert names.network_folder(Path("/var")) == ""
    monkeypatch.setenv("LITCAM_MOUNTS", str(mounts))
    scripted.answers += [send(CHUNK)]
    store = open_store("s3://bucket/data", tmp_path / "cache")
    with pytest.warns(UserWarning, match=r"is on a network \(nfs4\).*cache_dir to a local disk"):
        fetch(store)
    assert fetch(pickle.loads(pickle.dumps(store))).exists()
