"""Checkpoint formats, each behind the protocols of `base`; the only rooms that touch tensor files."""
