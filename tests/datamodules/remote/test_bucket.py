"""Training straight out of an S3 bucket, also while the server is away for a time."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from s3 import Moto, set_environment
from test_resume import diary, roots, run_on, same_weights

from litcam.datamodules.convert import convert

pytest.importorskip("moto", reason="moto[server] is not installed: no S3 to test with")
SCRIPT = Path(__file__).parents[1] / "resumed_run.py"
ADDRESS = "s3://bucket/shards"
# Of 26 chunks with an image each a few are kept and fetched ahead.
CACHE = {"cache_gb": 1e-5, "batch_size": 2}

__all__ = ["roots"]


# Filled before it listens, as a store is that comes back.
SERVE = """
import sys
from pathlib import Path
from moto.s3.models import s3_backends
from moto.server import main
shards, port = Path(sys.argv[1]), sys.argv[2]
backend = s3_backends["123456789012"]["aws"]
backend.create_bucket("bucket", "us-east-1")
for path in filter(Path.is_file, shards.rglob("*")):
    backend.put_object("bucket", f"shards/{path.relative_to(shards)}", path.read_bytes())
main(["-H", "127.0.0.1", "-p", port])
"""


class Bucket(Moto):
    """moto's S3 with a folder in it."""

    def __init__(self, folder, shards):
        self.shards = shards
        super().__init__(folder)

    def command(self):
        return [sys.executable, "-c", SERVE, str(self.shards), str(self.port)]


@pytest.fixture
def shards(roots, tmp_path):
    convert(roots / "folders", tmp_path / "shards", chunk_bytes=1500, say=lambda line: None)
    return tmp_path / "shards"


@pytest.fixture
def bucket(shards, tmp_path, monkeypatch):
    server = Bucket(tmp_path, shards)
    set_environment(monkeypatch, server.url)
    yield server
    server.stop()


def begin(folder, **options):
    """Starts a run that waits in the middle of its first epoch."""
    words = {"root": ADDRESS, "folder": str(folder), "pause_at": 5, **CACHE, **options}
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), json.dumps(words)],
        env={**environment, "LITCAM_STORE_TIMEOUT": "8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 90
    while not (folder / "paused").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return process


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_bucket_trains_like_a_folder_though_its_server_went_away(shards, tmp_path, bucket):
    assert run_on(1, shards, tmp_path / "disk", batch_size=2) == 0

    process = begin(tmp_path / "short", cache_dir=str(tmp_path / "cache-1"))
    bucket.stop()
    (tmp_path / "short/paused").unlink()
    time.sleep(2)
    bucket.start()
    said = process.communicate(timeout=90)[0]
    assert process.returncode == 0, said
    assert diary(tmp_path / "short") == diary(tmp_path / "disk")
    assert same_weights(tmp_path / "short", tmp_path / "disk")

    process = begin(tmp_path / "long", cache_dir=str(tmp_path / "cache-2"))
    bucket.stop()
    (tmp_path / "long/paused").unlink()
    said = process.communicate(timeout=90)[0]
    assert process.returncode == 1
    assert "--ckpt_path last" in said.strip().splitlines()[-1], said
    bucket.start()
    assert run_on(1, ADDRESS, tmp_path / "long", cache_dir=str(tmp_path / "cache-2"), **CACHE) == 0
    assert diary(tmp_path / "long") == diary(tmp_path / "disk")
    assert same_weights(tmp_path / "long", tmp_path / "disk")
