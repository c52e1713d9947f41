"""Once for all tests here: the process that forks, images, a training that is left alone."""

import time

import pytest
from forked import Forking
from test_resume import make_roots
from tiny_runs import fit


@pytest.fixture(scope="session")
def forking():
    with Forking() as forking:
        yield forking


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return make_roots(tmp_path_factory.mktemp("data")) / "folders"


@pytest.fixture(scope="session")
def whole(forking, root, tmp_path_factory):
    """The folder of the training that was left alone."""
    folder, began = tmp_path_factory.mktemp("whole"), time.monotonic()
    done = forking.run(fit(root), folder)
    assert done.code == 0, done.said
    (folder / "seconds").write_text(f"{time.monotonic() - began}")
    return folder
