import pytest
from cached import CHUNK, KEY
from s3 import Moto, Scripted, set_environment

from litcam.datamodules.remote import open_store


@pytest.fixture(autouse=True)
def short_lives(monkeypatch):
    """Servers that end soon after their test."""
    monkeypatch.setenv("LITCAM_CACHE_LINGER", "1")


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
def scripted(monkeypatch):
    server = Scripted()
    set_environment(monkeypatch, server.url)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def store(tmp_path):
    return open_store("s3://bucket/data", tmp_path / "cache")
