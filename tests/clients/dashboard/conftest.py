"""Fixtures: a gateway that remembers what its dashboard shows, and windows on it."""

import pytest

from browser import LOG, Browser, chromium, needs
from memory import Store


@pytest.fixture(scope="module")
def window():
    if missing := needs():
        pytest.skip(missing)
    with chromium() as browser:
        yield browser


@pytest.fixture
def browse(window, tmp_path):
    """Opens a window on a gateway, with cookies of its own."""
    contexts = []

    def browse(gateway, **options):
        contexts.append(window.new_context(**options))
        return Browser(contexts[-1].new_page(), gateway, tmp_path)

    yield browse
    for context in contexts:
        context.close()


@pytest.fixture
def store(tmp_path):
    """SQLite's: what pages show does not depend on the engine."""
    return Store(tmp_path)


@pytest.fixture
def gateway(remembering, store):
    return remembering(store, log=LOG)
