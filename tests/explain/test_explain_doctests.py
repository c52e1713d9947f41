"""The examples in this room's docstrings run."""

import doctest
import importlib
import pkgutil

import pytest

import litcam.explain

MODULES = [module.name for module in pkgutil.iter_modules(litcam.explain.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    failed, _ = doctest.testmod(importlib.import_module(f"litcam.explain.{name}"))
    assert not failed


def test_the_public_names_exist():
    assert all(hasattr(litcam.explain, name) for name in litcam.explain.__all__)
