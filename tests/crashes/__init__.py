"""Conversions that are killed, cut off, starved and interrupted: the output is complete and right, or not there."""
