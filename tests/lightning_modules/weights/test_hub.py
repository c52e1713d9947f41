"""No network: one line, and no waiting for it."""

import socket
import time

import pytest
from huggingface_hub import constants

from litcam.lightning_modules import Classifier


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """An address where nobody listens, and an empty cache."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


def test_without_a_network_nothing_is_tried_twice(no_hub, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waits {seconds} seconds"))
    with pytest.raises(ValueError, match=r"resnet10t: no pretrained weights.*weights=FILE") as told:
        Classifier("resnet10t", 4, pretrained=True)
    assert "\n" not in str(told.value)
    assert constants.HF_HUB_OFFLINE is False
