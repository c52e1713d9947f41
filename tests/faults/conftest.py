"""Faults that are caused for real; each test tells the page what it saw.

    pytest -m faults --fuzz=10000 --soak=300 --reliability_page=docs/reliability.md

The page's table is made of what the tests tell, so that no figure on it is typed.
"""

import os
import platform
import time
from pathlib import Path

import pytest
import torch

BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
HEAD = "| fault | how it is caused | times | what happened | what was lost | `pytest -m faults` |"
ROWS = pytest.StashKey[dict[str, list[str]]]()
STARTED = time.monotonic()


def pytest_configure(config):
    config.stash[ROWS] = {}


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.faults)


@pytest.fixture
def fuzz(request) -> int:
    """How many inputs of a kind to try: `--fuzz`."""
    return request.config.getoption("--fuzz")


@pytest.fixture
def tell(request):
    """Writes a row of the page: to be called once what it says has been asserted."""

    def tell(fault: str, *, caused: str, times: int, happened: str, lost: str = "nothing") -> None:
        cells = [fault, caused, f"{times:,}", happened, lost, request.node.nodeid.partition("/")[2]]
        row = "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        request.config.stash[ROWS].setdefault(request.node.nodeid, []).append(row)

    return tell


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        name = item.nodeid.partition("/")[2]
        row = f"| {item.name} | | | **not as promised** | | {name} |"
        item.config.stash[ROWS][item.nodeid] = [row]
    return report


def pytest_terminal_summary(terminalreporter, config):
    rows = [row for told in config.stash[ROWS].values() for row in told]
    page = config.getoption("--reliability_page")
    if not rows or not page:
        return
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    minutes = (time.monotonic() - STARTED) / 60
    facts = f"{machine}, torch {torch.__version__}; {minutes:.0f} minutes."
    table = "\n".join([facts, "", HEAD, "|---|---|---|---|---|---|", *rows])
    before, _, rest = Path(page).read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    Path(page).write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")
    terminalreporter.write_line(f"{len(rows)} rows in {page}")
