"""A finished trip, for the tests that read or copy it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rpam_lite.tiny_trip import rpam, write_recipe


@pytest.fixture(scope="session")
def trip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small recipe and its finished run; copy it before changing anything."""
    folder = tmp_path_factory.mktemp("trip")
    write_recipe(folder)
    rpam(folder, "run", "tiny.yaml")
    return folder
