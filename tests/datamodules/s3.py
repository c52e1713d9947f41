"""An S3 on this machine, and stores that answer as they are told to; for tests of every room."""

import http.server
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

__all__ = ["Moto", "Scripted", "refuse", "send", "set_environment", "stall"]


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
        """With boto3, which knows nothing of how litcam reads."""
        with pytest.MonkeyPatch.context() as patch:
            set_environment(patch, self.url)
            import boto3

            client = boto3.session.Session().client("s3")
            client.create_bucket(Bucket="bucket")
            client.put_object(Bucket="bucket", Key=key, Body=content, **options)

    def requests(self, key):
        return self.log.read_text().count(f"GET /bucket/{key} ")


def set_environment(patch, url):
    """Makes S3 mean a server of this machine, whatever the machine is set up for."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)
    patch.setenv("AWS_ENDPOINT_URL", url)
    patch.setenv("AWS_ACCESS_KEY_ID", "key")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    patch.setenv("AWS_CONFIG_FILE", os.devnull)
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")


class Scripted(http.server.ThreadingHTTPServer):
    """A store of which each request is answered by the next function of a list."""

    daemon_threads = True

    def __init__(self):
        self.answers, self.asked, self.headers, lock = [], [], [], threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server = self.server
                with lock:
                    server.asked.append(self.path)
                    server.headers.append(dict(self.headers))
                    one = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
                one(self)

            def log_message(self, *args):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        pass  # a client that is killed


def send(content, *, length=None, wait=0.0):
    def answer(handler):
        time.sleep(wait)
        handler.send_response(200)
        handler.send_header("Content-Length", str(length or len(content)))
        handler.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        handler.send_header("ETag", '"tag"')
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


def stall(content, length):
    def answer(handler):
        send(content, length=length)(handler)
        handler.wfile.flush()
        time.sleep(30)

    return answer
