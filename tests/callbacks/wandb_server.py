"""A look-alike of W&B's server on this machine, and servers that answer something else."""

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL = {"id": "1", "name": "litcam", "entity": {"id": "1", "name": "me"}}


class Server(ThreadingHTTPServer):
    """Answers as much of W&B's protocol as a run needs.

    Attributes:
        history: lines of metrics, each as it was sent.
        images: pictures by their address.
        bodies: all that was sent, as bytes.
    """

    daemon_threads = True

    def __init__(self, handler=None):
        super().__init__(("127.0.0.1", 0), handler or Answers)
        self.history, self.images, self.bodies = [], {}, []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self.shutdown()
        self.server_close()


class Quiet(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args):
        pass

    def answer(self, body, status=200, kind="application/json"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def read(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        self.server.bodies.append(body)
        return body


class Answers(Quiet):
    def _answer(self, value):
        self.answer(json.dumps(value).encode())

    def do_GET(self):
        self._answer({})

    def do_PUT(self):
        self.server.images[self.path] = self.read()
        self._answer({})

    def do_POST(self):
        body = self.read()
        if "/otel/" in self.path:  # what W&B counts about itself, as protobuf
            return self.answer(b"", kind="application/x-protobuf")
        body = json.loads(body or b"{}")
        if self.path.endswith("/file_stream"):
            sent = body.get("files", {}).get("wandb-history.jsonl", {})
            assert sent.get("offset", 0) in (0, len(self.server.history))
            self.server.history += [json.loads(line) for line in sent.get("content", [])]
            return self._answer({})
        return self._answer({"data": self._query(body)})

    def _query(self, body):
        name, given = body.get("operationName"), body.get("variables", {})
        if name == "Viewer":
            return {"viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}"}}
        if name == "RunResumeStatus":
            return {"model": {**MODEL, "bucket": self._what_is_there(given["name"])}}
        if name == "UpsertBucket":
            project = {"name": given.get("project"), "entity": {"name": "me"}}
            bucket = {"id": "1", "name": given.get("name"), "displayName": "run", "config": "{}"}
            return {"upsertBucket": {"bucket": {**bucket, "project": project}, "inserted": True}}
        if name == "CreateRunFiles":
            url = self.server.url
            files = [{"name": f, "uploadUrl": f"{url}/storage/{f}"} for f in given["files"]]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        return {}

    def _what_is_there(self, name):
        """Of a run that goes on: how many rows there are, and the last one."""
        if not (rows := self.server.history):
            return None
        last = json.dumps(rows[-1])
        counts = {"historyLineCount": len(rows), "eventsLineCount": 0, "logLineCount": 0}
        tails = {"historyTail": json.dumps([last]), "eventsTail": "[]", "summaryMetrics": last}
        about = {"id": "1", "name": name, "displayName": "run", "notes": "", "tags": []}
        return {**about, **counts, **tails, "config": "{}", "wandbConfig": '{"t": {}}'}


def wrong_answers(status, body=b"{}", kind="application/json"):
    """A handler that answers everything alike."""

    class Wrong(Quiet):
        def do_GET(self):
            self.read()
            self.answer(body, status, kind)

        do_POST = do_PUT = do_GET  # noqa: N815

    return Wrong
