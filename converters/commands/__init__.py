"""The command line. Only here is anything printed, and only here do errors become exit codes."""

from __future__ import annotations

from converters.commands.program import convert_main, main

__all__ = ["convert_main", "main"]
