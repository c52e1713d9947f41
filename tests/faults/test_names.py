"""Names that lead out of their folder: in manifests, tars, parquet files and buckets."""

import csv
import functools
import http.server
import os
import shutil
import threading

import pytest
from apart import litcam
from data_sets import FIT, listing, pack, read_all, refusal, rewrite, samples, write_photos

from litcam.datamodules.convert import check, convert
from litcam.datamodules.remote import open_store
from litcam.datamodules.remote.names import is_inside

NAMES = {
    "..": ["..", "../x", "../../../victim/.bashrc", "a/../../../victim/x", "./../victim/x"],
    "absolute": ["/victim/.bashrc", "//x", "/", "C:\\x", "C:x"],
    "backslash": ["..\\..\\victim\\x", "\\\\host\\x", "a\\..\\..\\x"],
    "NUL": ["a\0b", "\0", "x\0/../../victim/x"],
    "itself": ["", ".", "./", "././."],
}
# Of files of a manifest, which lie in one folder and are given their names by litcam.
WORSE = {
    "too long": ["a" * 300, "a/" * 3000 + "x", "ä" * 150],
    "a folder": ["a/b", "train/x"],
    "no text": [None, 7, True, [], {}, ["x"], 1.5, {"a": "../x"}],
    "odd": ["a b", "-x", ".x", "x\ny", "x\r", "ﬀ", "\ud800", "a\u202eb", "~", "~/x", "%2e%2e/x"],
}
OUTWARD = [name for names in NAMES.values() for name in names]
ANY = OUTWARD + [name for names in WORSE.values() for name in names]


@pytest.fixture
def made(tmp_path):
    """A converted data set, a victim's home beside it, and what lies there."""
    convert(write_photos(tmp_path / "photos"), tmp_path / "good", chunk_bytes=4000)
    home = tmp_path / "victim"
    home.mkdir()
    (home / ".bashrc").write_text("mine")
    return tmp_path


@pytest.fixture
def serve(tmp_path):
    """Serves a folder as a bucket would."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=tmp_path / "bucket")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def name_chunk(name):
    return lambda all_, at: at["chunks"][0].update(file=name)


def name_file(name):
    def change(all_, at):
        at["files"][name] = at["files"].pop("labels.npy")

    return change


def name_split(name):
    def change(all_, at):
        all_["splits"][name] = all_["splits"].pop("train")

    return change


PLACES = {"chunk": name_chunk, "file": name_file, "split": name_split}


def cases():
    """What a hostile manifest may say: names in each place, and one name twice."""
    for place, change in PLACES.items():
        for name in ANY:
            if place == "chunk" or isinstance(name, str):  # JSON has no other keys
                yield change(name)
    yield lambda all_, at: at["chunks"][1].update(file=at["chunks"][0]["file"])
    yield lambda all_, at: at["chunks"][0].update(file="labels.npy")


def test_names_in_a_manifest(made, serve, monkeypatch, tell):
    monkeypatch.setenv("LITCAM_CACHE_LINGER", "1")
    before, tried = listing(made), 0
    for change in cases():
        shutil.copytree(made / "good", made / "bucket")
        rewrite(made / "bucket", change)
        for call in (
            lambda: read_all(made / "bucket"),
            lambda: check(made / "bucket"),
            lambda: read_all(serve, cache_dir=made / "cache"),
        ):
            line = refusal(call)
            assert "litcam.json is damaged" in line and len(line) < 500, line
            tried += 1
        shutil.rmtree(made / "bucket")
    shutil.rmtree(made / "cache")
    assert listing(made) == before
    tell(
        "a manifest names files outside of its folder",
        caused=f"{len(OUTWARD)} names with `..`, `/`, `\\`, a drive or NUL, and "
        f"{len(ANY) - len(OUTWARD)} too long, odd or no text, as chunk, file and split; a name "
        "twice; in a folder, with `--check`, and behind an address",
        times=tried,
        happened="refused in a line that names it; no file outside of the cache was touched",
    )


def test_keys_of_a_store(made, serve, monkeypatch):
    """What would ask a store for such a name is refused before anything is fetched."""
    monkeypatch.setenv("LITCAM_CACHE_LINGER", "1")
    (made / "bucket").mkdir()
    before = listing(made)
    for store in (open_store(made / "bucket"), open_store(serve, made / "cache")):
        for name in OUTWARD:
            assert "is not inside of it" in refusal(store.path, name)
    assert listing(made) == before


def test_names_in_tars(made, tell):
    tried = 0
    for name in [*OUTWARD, *(f"{name}/x" for name in OUTWARD)]:
        stem = name.partition("\0")[0].rpartition("/")[2].partition(".")[0]
        if not stem or stem.endswith("\\"):  # ends at NUL in a tar; there is no name of an image
            continue
        inside = is_inside(name.partition("\0")[0])
        pack(made / "tars/train.tar", samples(("a", name)))
        pack(made / "tars/val.tar", samples())
        line = refusal(convert, made / "tars", made / "out")
        assert inside or ("train.tar names a file" in line and "not inside of it" in line)
        tried += not inside
        shutil.rmtree(made / "tars")
        shutil.rmtree(made / "out", ignore_errors=True)
    links = [("evil.jpg", "../victim/.bashrc"), ("x", "/"), ("x/y.jpg", "/etc/passwd")]
    pack(made / "tars/train.tar", [*links, *samples()])
    pack(made / "tars/val.tar", samples())
    before = listing(made)
    convert(made / "tars", made / "out")
    names = listing(made / "out")
    shutil.rmtree(made / "out")
    assert listing(made) == before and (made / "victim/.bashrc").read_text() == "mine"
    assert not [name for name in names if "evil" in name or "passwd" in name]
    tell(
        "a tar of images names files outside of its folder",
        caused="WebDataset tars with `..`, absolute names, drives, and links to files elsewhere",
        times=tried + len(links),
        happened=f"{tried} refused in a line that names it; {len(links)} links left out",
    )


def test_names_in_parquet(made, tell):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    before, tried = listing(made), 0
    for name in [*OUTWARD, None, "x" * 5000]:
        for split in ("train", "validation"):
            rows = [
                {"bytes": data, "path": at}
                for at, data in (
                    (name, dict(samples())["a.jpg"]),
                    ("b.jpg", dict(samples())["b.jpg"]),
                )
            ]
            (made / "rows").mkdir(exist_ok=True)
            table = pa.table({"image": rows, "label": [0, 1]})
            pq.write_table(table, made / "rows" / f"{split}.parquet")
        convert(made / "rows", made / "out")
        keys = list(read_all(made / "out").train_dataloader().dataset.keys)
        assert keys == ["train/00000000", "train/00000001"] or keys[0] == "x" * 5000
        shutil.rmtree(made / "out")
        shutil.rmtree(made / "rows")
        assert listing(made) == before
        tried += 1
    tell(
        "a parquet file names images outside of its folder",
        caused="`..`, absolute names, drives, NUL, no name, 5,000 letters as `image.path`",
        times=tried,
        happened="converted, with numbers instead of such names; nothing else was written",
    )


def test_names_that_are_not_utf_8(tmp_path, tell):
    """As old archives leave them: the bytes of another alphabet."""
    root = write_photos(tmp_path / "photos")
    names = [b"caf\xe9.jpg", b"\xff\xfe.jpg", "ｄ\u202eb\n.jpg".encode()]
    for split in ("train", "val"):
        for number, name in enumerate(names):
            place = root / split / ("cat", "dog")[number % 2]
            next(place.glob("[0-9].jpg")).rename(place / os.fsdecode(name))
    code, said = litcam(*FIT, "--trainer.default_root_dir", "run")
    assert code == 0, said
    words = [word.replace("fit", "predict", 1) if word == "fit" else word for word in FIT]
    code, said = litcam(*words, "--trainer.default_root_dir", "run")
    assert code == 0, said
    (file,) = (tmp_path / "run").rglob("predictions.csv")
    with file.open(newline="", encoding="utf-8") as lines:
        found = {row["image"] for row in csv.DictReader(lines)}
    assert {"cat/caf\\udce9.jpg", "dog/\\udcff\\udcfe.jpg"} <= found and len(found) == 4
    line = refusal(convert, root, tmp_path / "out")
    assert "is not UTF-8; rename it" in line or "line break" in line
    tell(
        "names of photos are not UTF-8, or have a line break",
        caused="Latin-1, bytes of no alphabet, and a line break, in `fit`, `predict` and `convert`",
        times=len(names),
        happened="trained on and predicted (`caf\\udce9.jpg`); `convert` names the first",
    )
