"""A finished trip, and a pair that can be measured, for the tests that read or copy them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rpam_lite.measured_models import save_measured
from tests.rpam_lite.tiny_trip import rpam, write_recipe


@pytest.fixture(scope="session")
def trip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small recipe and its finished run; copy it before changing anything."""
    folder = tmp_path_factory.mktemp("trip")
    write_recipe(folder)
    rpam(folder, "run", "tiny.yaml")
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small pair, a base near both and their capture; all tests read this one."""
    return save_measured(tmp_path_factory.mktemp("measured"))
