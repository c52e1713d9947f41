"""`.ci/audit`: it fails on a known vulnerability alone, and hides nothing that was not asked."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

AUDIT = Path(__file__).parents[1] / ".ci" / "audit"
pytest.importorskip("pip_audit", reason="pip-audit is not installed")
pytestmark = pytest.mark.slow


class Database(BaseHTTPRequestHandler):
    """Knows one vulnerability, of any version of torch, in the form of OSV."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = []
        package = {"name": "torch", "ecosystem": "PyPI"}
        if asked["package"]["name"] == "torch":
            affected = [{"package": package, "versions": [asked["version"]]}]
            found = [{"id": "PYSEC-1", "aliases": ["CVE-1"], "summary": "", "affected": affected}]
        answer = json.dumps({"vulns": found} if found else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@pytest.fixture
def audit(tmp_path):
    """Runs a copy of the script, with exceptions of its own, against a database on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Database)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "audit").write_text(AUDIT.read_text())

    def audit(exceptions, port=None):
        (tmp_path / "audit-exceptions.txt").write_text(exceptions)
        url = f"http://127.0.0.1:{port or server.server_port}"
        options = ["-s", "osv", "--osv-url", url, "--cache-dir", str(tmp_path / "cache")]
        done = subprocess.run(
            [sys.executable, tmp_path / "audit", *options], capture_output=True, text=True
        )
        assert not done.stderr
        return done.returncode, done.stdout.splitlines()

    yield audit
    server.shutdown()
    server.server_close()


def test_a_known_vulnerability_fails(audit):
    code, lines = audit("# none\n")
    assert code == 1
    assert "PYSEC-1" in lines[0]
    assert "torch" in lines[0]
    assert lines[-1].endswith("1 vulnerabilities, 0 excepted")


def test_an_exception_has_to_be_of_use(audit):
    code, lines = audit("CVE-1 does not matter here\nCVE-2 neither does this\n")
    assert code == 0
    assert lines[0] == "pip-audit: the exception CVE-2 is no longer needed"
    assert lines[-1].endswith("0 vulnerabilities, 1 excepted")


def test_a_database_that_does_not_answer_is_told(audit):
    code, lines = audit("", port=9)
    assert code == 0
    assert len(lines) == 1
    assert lines[0].startswith("pip-audit: nothing was audited")
