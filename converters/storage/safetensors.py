"""Checkpoints in safetensors files: one reader for one or many of them, and one writer."""

from converters.storage.safetensors_reader import SafetensorsReader
from converters.storage.safetensors_writer import SafetensorsWriter

__all__ = ["SafetensorsReader", "SafetensorsWriter"]
