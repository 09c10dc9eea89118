"""Hypothesis profiles, and skipping of tests that need a GPU."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# ci draws the same examples every time, so that a red build is red again; dev draws new ones.
settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("dev", deadline=None)
# Manifests hold the time; with this, two runs of one job give the same bytes in all files.
os.environ.setdefault("SOURCE_DATE_EPOCH", "1700000000")
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where torch finds no CUDA device; torch is imported only if there are any."""
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_tests:
        return
    import torch  # not at the top: running one file of tests seldom needs it

    if not torch.cuda.is_available():
        for item in gpu_tests:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
