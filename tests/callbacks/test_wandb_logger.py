"""W&B without a key, without a server, and with a look-alike of one on this machine."""

import json
import logging
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import wandb
from strangers import Stranger, make_trainer

from litcam.callbacks import GradCAM, WandbLogger

LOG = "lightning.pytorch.callbacks.litcam"


@pytest.fixture
def said():
    lines = []

    class Keep(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    keep, logger = Keep(), logging.getLogger(LOG)
    logger.addHandler(keep)
    yield lines
    logger.removeHandler(keep)


def assert_offline(said, seconds, **kwargs):
    start = time.monotonic()
    run = WandbLogger(**kwargs).experiment
    assert time.monotonic() - start < seconds
    folder = Path(run.dir).parent
    assert run.settings._offline and folder.name.startswith("offline-run-")
    (line,) = said
    assert f"`wandb leet {folder}`" in line and f"`wandb sync {folder}`" in line
    assert "WANDB_MODE" not in os.environ
    return line


def test_no_key(said):
    assert "no API key" in assert_offline(said, 8)


def test_asked_for(said):
    assert "asked for" in assert_offline(said, 8, offline=True)


def test_dead_server(said, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert "does not answer" in assert_offline(said, 8, connect_timeout=2)


def test_silent_server(said, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert "does not answer" in assert_offline(said, 10, connect_timeout=2)


def test_disabled(said, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    trainer = make_trainer(GradCAM(), logger=WandbLogger(), max_epochs=1)
    trainer.fit(Stranger())
    assert trainer.state.finished and os.environ["WANDB_MODE"] == "disabled"


def test_settings_of_the_user_hold():
    logger = WandbLogger(offline=True, settings=wandb.Settings(run_notes="mine", finish_timeout=7))
    settings = logger.experiment.settings
    assert settings.run_notes == "mine" and settings.finish_timeout == 7


class Server(ThreadingHTTPServer):
    """Answers as much of W&B's protocol as a run needs."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.history, self.images = [], {}
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class Answers(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args):
        pass

    def _answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _read(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self):
        self._answer({})

    def do_PUT(self):
        self.server.images[self.path] = self._read()
        self._answer({})

    def do_POST(self):
        body = json.loads(self._read() or b"{}")
        if self.path.endswith("/file_stream"):
            lines = body.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.server.history += [json.loads(line) for line in lines]
            return self._answer({})
        return self._answer({"data": self._query(body)})

    def _query(self, body):
        name, given = body.get("operationName"), body.get("variables", {})
        if name == "Viewer":
            return {"viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}"}}
        if name == "UpsertBucket":
            project = {"name": given.get("project"), "entity": {"name": "me"}}
            bucket = {"id": "1", "name": given.get("name"), "displayName": "run", "config": "{}"}
            return {"upsertBucket": {"bucket": {**bucket, "project": project}, "inserted": True}}
        if name == "CreateRunFiles":
            url = self.server.url
            files = [{"name": f, "uploadUrl": f"{url}/storage/{f}"} for f in given["files"]]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        return {}


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    yield server
    server.shutdown()
    server.server_close()


def test_online_run_arrives(server, said):
    logger = WandbLogger(finish_timeout=20)
    make_trainer(GradCAM(), logger=logger).fit(Stranger())
    assert "live" in said[0]
    wandb.finish()
    records = [line for line in server.history if "val/gradcam/true" in line]
    assert [line["epoch"] for line in records] == [0, 1]
    for line in records:
        for name in line["val/gradcam/true"]["filenames"]:
            (body,) = (body for path, body in server.images.items() if path.endswith(name))
            assert body.startswith(b"\xff\xd8") and len(body) > 1000


def test_server_that_dies_in_the_middle(server):
    logger = WandbLogger(finish_timeout=3)
    trainer = make_trainer(GradCAM(), logger=logger, max_epochs=3)
    logger.experiment.log({"before": 1})
    server.shutdown()
    server.server_close()
    trainer.fit(Stranger())
    assert trainer.state.finished
    start = time.monotonic()
    wandb.finish()
    assert time.monotonic() - start < 10
