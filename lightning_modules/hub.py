"""Pretrained weights where there may be no network."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants

__all__ = ["no_waiting_for_the_hub"]

PATIENCE = 5.0  # seconds for one connection


@contextmanager
def no_waiting_for_the_hub() -> Iterator[None]:
    """Have Hugging Face's client look into its cache alone where its hub cannot be reached.

    By itself it tries every request five times, and a minute and a half goes by.
    """
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _is_reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _is_reachable(url: str) -> bool:
    place = urlsplit(url)
    if place.scheme in getproxies():  # whose address is no matter of ours
        return True
    port = place.port or (80 if place.scheme == "http" else 443)
    try:
        socket.create_connection((place.hostname or "", port), PATIENCE).close()
    except OSError:
        return False
    return True
