import errno
import http.server
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import urllib.request
import warnings
from pathlib import Path

import pytest
import xxhash

from litcam.datamodules.remote import remote_stores, transfers
from litcam.datamodules.remote.prefetch import Prefetcher
from litcam.datamodules.remote.stores import open_store

KEY = "data/train/chunk-0-0.bin"
NAME = "train/chunk-0-0.bin"
CHUNK = bytes(range(256)) * 1200
HASH = xxhash.xxh64(CHUNK).hexdigest()
# Forking beside threads is what is tested here.
FORKS = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


class Moto:
    """moto's S3 on a port of this machine, in a process of its own."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "moto.log"
        self.start()

    def command(self):
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    def start(self):
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            try:
                return urllib.request.urlopen(f"{self.url}/moto-api/", timeout=5).close()
            except OSError:
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.1)

    def stop(self):
        self.process.kill()
        self.process.wait()

    def put(self, key, content, **options):
        with pytest.MonkeyPatch.context() as patch:
            client = client_of(patch, self.url)
            client.create_bucket(Bucket="bucket")
            client.put_object(Bucket="bucket", Key=key, Body=content, **options)

    def requests(self, key):
        return self.log.read_text().count(f"GET /bucket/{key} ")


def client_of(patch, url):
    import boto3

    set_environment(patch, url)
    return boto3.session.Session().client("s3")


def set_environment(patch, url):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)
    patch.setenv("AWS_ENDPOINT_URL", url)
    patch.setenv("AWS_ACCESS_KEY_ID", "key")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    patch.setenv("AWS_CONFIG_FILE", os.devnull)
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("moto", reason="moto[server] is not installed: no S3 to test with")
    server = Moto(tmp_path_factory.mktemp("moto"))
    yield server
    server.stop()


@pytest.fixture
def moto(server, monkeypatch):
    server.put(KEY, CHUNK)
    set_environment(monkeypatch, server.url)
    return server


@pytest.fixture
def store(tmp_path):
    pytest.importorskip("boto3")
    return open_store("s3://bucket/data", tmp_path / "cache")


@pytest.fixture
def scripted(monkeypatch):
    """An S3 of which each request is answered by the next function of a list."""
    answers, asked = [], []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            (answers.pop(0) if len(answers) > 1 else answers[0])(self)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.answers, server.asked = answers, asked
    threading.Thread(target=server.serve_forever, daemon=True).start()
    set_environment(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


def send(content, *, length=None, wait=0.0):
    def answer(handler):
        time.sleep(wait)
        handler.send_response(200)
        handler.send_header("Content-Length", str(length or len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def refuse(status, code="Any"):
    def answer(handler):
        body = f"<Error><Code>{code}</Code><Message>no\nway</Message></Error>".encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def stall(handler):
    send(CHUNK[:200_000], length=len(CHUNK))(handler)
    handler.wfile.flush()
    time.sleep(30)


def fetch(store):
    return store.path(NAME, num_bytes=len(CHUNK), xxh64=HASH)


def one_line(caught):
    message = str(caught.value)
    assert "\n" not in message
    assert caught.traceback[-1].frame.f_globals["__name__"].startswith("litcam.datamodules")
    return message


def files_of(store):
    return sorted(path.name for path in store.folder.rglob("*") if path.is_file())


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


def test_a_bucket_without_a_key(moto, tmp_path, monkeypatch):
    # A host with a name, where Amazon's own would carry the bucket in it.
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto.url.replace("127.0.0.1", "localhost"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    store = open_store("s3://bucket", tmp_path)
    with pytest.raises(PermissionError, match=r"access denied .*; set AWS_PROFILE") as caught:
        store.path(KEY)
    one_line(caught)
    moto.put(KEY, CHUNK, ACL="public-read")
    assert store.path(KEY).read_bytes() == CHUNK


def test_a_file_without_a_hash_is_fetched_once_for_each_store(moto, tmp_path):
    moto.put("data/litcam.json", b"old")
    first = open_store("s3://bucket/data", tmp_path)
    assert first.exists("litcam.json")
    moto.put("data/litcam.json", b"new")
    assert pickle.loads(pickle.dumps(first)).path("litcam.json").read_bytes() == b"old"
    assert open_store("s3://bucket/data", tmp_path).path("litcam.json").read_bytes() == b"new"


def test_a_damaged_copy_in_the_cache_is_fetched_again(moto, store, tmp_path):
    fetch(store).write_bytes(b"x" * len(CHUNK))
    other = open_store("s3://bucket/data", tmp_path / "cache")
    assert fetch(other).read_bytes() == CHUNK


def test_a_damaged_file_in_the_bucket(moto, store):
    before = moto.requests(KEY)
    moto.put(KEY, CHUNK[:-1] + b"x")
    with pytest.raises(OSError, match=r"s3://bucket/data/train/chunk-0-0.bin is damaged") as caught:
        fetch(store)
    assert HASH in one_line(caught) and "copy it there again" in one_line(caught)
    assert moto.requests(KEY) == before + 2
    assert files_of(store) == ["chunk-0-0.bin.lock"]
    moto.put(KEY, CHUNK[:-1])
    with pytest.raises(OSError, match=f"has {len(CHUNK) - 1} bytes instead of {len(CHUNK)}"):
        fetch(store)


def test_what_is_not_there(moto, store, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data/val/chunk-9-9.bin is missing") as caught:
        store.path("val/chunk-9-9.bin")
    one_line(caught)
    raw = open_store("s3://bucket/raw", tmp_path)
    assert not raw.exists("litcam.json")
    with pytest.raises(
        FileNotFoundError, match=r"raw has no litcam.json; .*sync DST s3://bucket/raw\)"
    ):
        raw.path("litcam.json")
    nowhere = open_store("s3://no-such-bucket/data", tmp_path)
    with pytest.raises(ValueError, match=r"no-such-bucket/data: .*bucket does not exist") as caught:
        nowhere.exists("litcam.json")
    one_line(caught)


def test_half_a_key(moto, store, monkeypatch):
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(OSError, match="cannot be fetched: Partial credentials") as caught:
        fetch(store)
    one_line(caught)


def clock(monkeypatch, sleep):
    calls = {name: getattr(time, name) for name in ("time", "time_ns", "monotonic")}
    monkeypatch.setattr(remote_stores, "time", types.SimpleNamespace(**calls, sleep=sleep))


def test_goes_on_when_the_store_is_back(tmp_path, monkeypatch):
    pytest.importorskip("moto")
    server = Moto(tmp_path)
    try:
        server.stop()
        set_environment(monkeypatch, server.url)
        store = open_store("s3://bucket/data", tmp_path / "cache")
        found = []
        refused, ready = threading.Event(), threading.Event()
        # A server without the bucket yet would be the end, so no try comes before both are there.
        clock(monkeypatch, lambda _: (refused.set(), ready.wait(60)))
        thread = threading.Thread(target=lambda: found.append(fetch(store)))
        thread.start()
        assert refused.wait(60)
        server.start()
        server.put(KEY, CHUNK)
        ready.set()
        thread.join(60)
        assert found[0].read_bytes() == CHUNK
    finally:
        server.stop()


def test_a_store_that_stays_away(store, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        set_environment(monkeypatch, f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setenv("LITCAM_STORE_TIMEOUT", "3")
    monkeypatch.setattr(remote_stores, "WARN_AFTER", 0.3)
    import boto3.session  # takes seconds where the machine is busy

    boto3.session.Session().client("s3")
    started = time.monotonic()
    with (
        pytest.warns(UserWarning, match=r"chunk-0-0.bin: the store does not answer .*s more"),
        pytest.raises(OSError, match=r"s3://bucket/data/.* did not answer for \d+ s") as caught,
    ):
        fetch(store)
    assert 3 <= time.monotonic() - started < 60
    assert "--ckpt_path last" in one_line(caught)


def test_hiccups_are_waited_for(scripted, store, monkeypatch):
    clock(monkeypatch, lambda _: None)
    cut = send(CHUNK[:1000], length=len(CHUNK))
    scripted.answers += [refuse(503, "SlowDown"), refuse(500), cut, send(CHUNK)]
    assert fetch(store).read_bytes() == CHUNK
    assert len(scripted.asked) == 4


def test_a_transfer_that_spoils_a_file_is_repeated(scripted, store):
    scripted.answers += [send(b"x" * len(CHUNK)), send(CHUNK)]
    assert fetch(store).read_bytes() == CHUNK


def test_a_refusal_is_one_line(scripted, store):
    scripted.answers += [refuse(403, "AccessDenied")]
    with pytest.raises(PermissionError, match="no way") as caught:
        fetch(store)
    one_line(caught)
    assert len(scripted.asked) == 1


def in_process(store):
    process = multiprocessing.get_context("fork").Process(target=fetch, args=(store,))
    process.start()
    return process


@FORKS
def test_two_processes_fetch_once(scripted, store):
    scripted.answers += [send(CHUNK, wait=0.5)]
    processes = [in_process(store), in_process(store)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(scripted.asked) == 1
    assert fetch(store).read_bytes() == CHUNK
    assert len(scripted.asked) == 1


@FORKS
def test_a_process_killed_on_the_way_leaves_nothing_wrong(scripted, store):
    scripted.answers += [stall, send(CHUNK)]
    process = in_process(store)
    part = store.folder / f"{NAME}.part"
    deadline = time.monotonic() + 30
    while not part.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    assert part.exists() and not (store.folder / NAME).exists()
    assert fetch(store).read_bytes() == CHUNK
    assert files_of(store) == ["chunk-0-0.bin", "chunk-0-0.bin.lock"]


def test_the_cache_keeps_the_newest(scripted, tmp_path, monkeypatch):
    scripted.answers += [send(CHUNK)]
    store = open_store("s3://bucket/data", tmp_path, cache_gb=2.5 * len(CHUNK) / 1e9)
    for number, name in enumerate(("litcam.json", "a.bin", "b.bin")):
        os.utime(store.path(name), (1000 + number, 1000 + number))
    assert [name for name in files_of(store) if "lock" not in name] == ["b.bin", "litcam.json"]
    assert store.path("c.bin").exists()
    assert [name for name in files_of(store) if "lock" not in name] == ["c.bin", "litcam.json"]
    # What was handed out just now may not be open yet.
    store.path("d.bin")
    assert [name for name in files_of(store) if "lock" not in name] == [
        "c.bin",
        "d.bin",
        "litcam.json",
    ]


def test_use_counts_for_eviction(scripted, tmp_path):
    scripted.answers += [send(CHUNK)]
    store = open_store("s3://bucket/data", tmp_path, cache_gb=2.5 * len(CHUNK) / 1e9)
    for name in ("a.bin", "b.bin"):
        os.utime(store.path(name), (1000, 1000))
    store.path("a.bin")
    store.path("c.bin")
    assert [name for name in files_of(store) if "lock" not in name] == ["a.bin", "c.bin"]


def test_a_full_disk(scripted, store, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    scripted.answers += [send(CHUNK)]
    monkeypatch.setattr(transfers.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match=r"No space left on device; .* GB free.* cache_gb") as caught:
        fetch(store)
    assert str(store.folder) in one_line(caught)
    assert files_of(store) == ["chunk-0-0.bin.lock"]


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    store = open_store("s3://bucket/data", tmp_path / "file")
    with pytest.raises(OSError, match=r"takes no more files .*another cache_dir") as caught:
        fetch(store)
    one_line(caught)


def wanted(count):
    return [(f"train/{number}.bin", len(CHUNK), HASH) for number in range(count)]


def arrived(store):
    return {int(name.removesuffix(".bin")) for name in files_of(store) if name.endswith(".bin")}


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@FORKS
def test_prefetching_stays_ahead(scripted, store):
    scripted.answers += [refuse(503), send(CHUNK)]
    prefetcher = Prefetcher(store, wanted(9), ahead=2, threads=2)
    prefetcher.advance(0)
    # A worker forked beside the threads fetches on its own.
    process = in_process(store)
    process.join(30)
    assert process.exitcode == 0
    (store.folder / NAME).unlink()
    wait_for(lambda: arrived(store) == {0, 1, 2})
    prefetcher.advance(5)
    wait_for(lambda: arrived(store) == {0, 1, 2, 5, 6, 7})
    prefetcher.close()
    prefetcher.advance(8)
    time.sleep(0.2)
    assert arrived(store) == {0, 1, 2, 5, 6, 7}


def test_prefetching_leaves_room_in_a_small_cache(scripted, tmp_path):
    scripted.answers += [send(CHUNK)]
    store = open_store("s3://bucket/data", tmp_path, cache_gb=4 * len(CHUNK) / 1e9)
    prefetcher = Prefetcher(store, wanted(9))
    prefetcher.advance(0)
    wait_for(lambda: arrived(store) == {0, 1, 2})
    time.sleep(0.2)
    assert arrived(store) == {0, 1, 2}
    prefetcher.close()


def test_prefetching_warns_of_a_small_disk(store):
    with pytest.warns(UserWarning, match=r"less room than the 1000000000.0 GB .* cache_gb"):
        Prefetcher(store, [("a.bin", 10**18, HASH)])


def test_prefetching_out_of_a_folder_does_nothing(tmp_path):
    prefetcher = Prefetcher(open_store(tmp_path), wanted(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prefetcher.advance(1)
        prefetcher.close()


def test_a_folder(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / NAME).write_bytes(CHUNK)
    store = open_store(tmp_path)
    assert store.root == str(tmp_path)
    assert fetch(store) == tmp_path / NAME
    assert store.exists(NAME) and not store.exists("litcam.json")
    (tmp_path / NAME).write_bytes(CHUNK[:-1])
    assert fetch(store) == tmp_path / NAME  # checked before, by this process
    other = pickle.loads(pickle.dumps(store))
    with pytest.raises(OSError, match=f"0.bin has {len(CHUNK) - 1} bytes .*litcam convert --check"):
        fetch(other)
    (tmp_path / NAME).write_bytes(CHUNK[:-1] + b"x")
    with pytest.raises(OSError, match=r"chunk-0-0.bin is damaged: .*litcam convert --check") as bad:
        fetch(other)
    one_line(bad)
    with pytest.raises(FileNotFoundError, match=r"1.bin is missing; `litcam convert --check") as no:
        store.path("train/1.bin")
    one_line(no)


@pytest.mark.parametrize(
    ("root", "options", "message"),
    [
        ("http://host/data", {}, "neither a folder nor one of s3://, gs://"),
        ("s3://", {}, "names no bucket"),
        ("s3://bucket", {"cache_gb": 0}, "cache_gb must be > 0, got 0"),
    ],
)
def test_addresses_that_make_no_sense(root, options, message):
    with pytest.raises(ValueError, match=message):
        open_store(root, **options)


@pytest.fixture
def google(tmp_path):
    """Google's store as LitData would ask it, with errors such as its client raises."""
    downloader = pytest.importorskip("litdata.streaming.downloader")

    class FakeDownloader(downloader.Downloader):
        def download_file(self, remote, local):
            if remote.endswith("nothing.bin"):
                return
            if remote.endswith("secret.bin"):
                error = RuntimeError("403 GET: you shall not pass")
                error.code = 403
                raise error
            Path(local).write_bytes(CHUNK)
            Path(f"{local}.lock").touch()

    before = downloader._DOWNLOADERS["gs://"]
    downloader.register_downloader("gs://", FakeDownloader, overwrite=True)
    yield open_store("gs://bucket/data", tmp_path)
    downloader.register_downloader("gs://", before, overwrite=True)


def test_other_stores_go_through_litdata(google, monkeypatch):
    assert fetch(google).read_bytes() == CHUNK
    assert files_of(google) == ["chunk-0-0.bin", "chunk-0-0.bin.lock"]
    with pytest.raises(PermissionError, match=r"gs://bucket/data/secret.bin: access .*gcloud auth"):
        google.path("secret.bin")
    monkeypatch.setenv("LITCAM_STORE_TIMEOUT", "0")
    with pytest.raises(OSError, match=r"did not answer for 0 s \(nothing came back\)"):
        google.path("nothing.bin")


def test_a_timeout_that_is_no_number(store, monkeypatch):
    monkeypatch.setenv("LITCAM_STORE_TIMEOUT", "5 min")
    with pytest.raises(ValueError, match="LITCAM_STORE_TIMEOUT must be seconds, got '5 min'"):
        store.path("litcam.json")


def test_a_package_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ValueError, match=r"s3://bucket needs .*: pip install litdata boto3"):
        open_store("s3://bucket", tmp_path).path("litcam.json")
