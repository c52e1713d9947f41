"""The examples in this room's docstrings run."""

import doctest
import importlib
import pkgutil

import pytest

import litcam.explain

MODULES = [
    module.name
    for module in pkgutil.walk_packages(litcam.explain.__path__, "litcam.explain.")
    if not module.ispkg
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert not failed


def test_the_public_names_exist():
    assert all(hasattr(litcam.explain, name) for name in litcam.explain.__all__)
