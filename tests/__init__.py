"""Tests, laid out like the sources. A package, so that `from tests.models import tiny_phi` works everywhere."""
