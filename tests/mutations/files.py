"""A converted checkpoint in memory, to be changed and written back to the same files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

INDEX = "model.safetensors.index.json"


@dataclass(slots=True)
class Checkpoint:
    """Tensors by key, the file of each, and the config."""

    directory: Path
    tensors: dict[str, Tensor]
    file_of: dict[str, str]
    config: dict[str, Any]

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read all of a directory."""
        tensors: dict[str, Tensor] = {}
        file_of = {}
        for file in sorted(directory.glob("*.safetensors")):
            with safe_open(file, framework="pt") as shard:
                for key in shard.keys():  # noqa: SIM118 -- it is not a mapping
                    tensors[key] = shard.get_tensor(key).clone()
                    file_of[key] = file.name
        return cls(directory, tensors, file_of, json.loads((directory / "config.json").read_text()))

    def write(self) -> None:
        """Write every file anew, and the index where there is one."""
        for name in set(self.file_of.values()):
            held = {key: self.tensors[key].contiguous() for key, file in self.file_of.items() if file == name}
            save_file(held, self.directory / name, {"format": "pt"})
        index = self.directory / INDEX
        if index.exists():
            content = json.loads(index.read_text())
            content["weight_map"] = dict(sorted(self.file_of.items()))
            content["metadata"]["total_size"] = sum(each.nbytes for each in self.tensors.values())
            index.write_text(json.dumps(content))
        (self.directory / "config.json").write_text(json.dumps(self.config))

    def remove(self, key: str) -> None:
        """Take a tensor out."""
        del self.tensors[key], self.file_of[key]

    def last_file(self) -> str:
        """The name of the last file."""
        return max(self.file_of.values())


def changed_keys(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The keys whose tensors differ in any bit, or that only one has."""
    both = before.keys() & after.keys()
    return set(before.keys() ^ after.keys()) | {
        key
        for key in both
        if before[key].shape != after[key].shape
        or before[key].dtype != after[key].dtype
        or not torch.equal(before[key].contiguous().view(torch.uint8), after[key].contiguous().view(torch.uint8))
    }
