"""The `.metadata` of a distributed checkpoint, a pickle as torch.distributed.checkpoint writes it, made without torch.

Each tensor is one chunk. Source: torch/distributed/checkpoint/metadata.py and filesystem.py, `_StorageInfo`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct

from converters.storage.torch_pickle_writer import PickleWriter, global_opcode, text_opcode
from converters.tensor_info import TensorInfo, torch_name

_TYPES: Final = "torch.distributed.checkpoint.metadata"
_FILES: Final = "torch.distributed.checkpoint.filesystem"
_VERSION: Final = "1.0.0"
_BATCH: Final = 1000


class StoredTensor(Struct, frozen=True):
    """A tensor, and where it is stored: `nbytes` of the file from `start` on, an archive of `torch.save`."""

    info: TensorInfo
    filename: str
    start: int
    nbytes: int


def write_metadata(tensors: Sequence[StoredTensor]) -> bytes:
    """Write the pickle, in protocol 2, for a state dict of these tensors."""
    writer = _Writer()
    writer.out += b"\x80\x02"
    writer.metadata(tensors)
    writer.out += b"."
    return bytes(writer.out)


_Write = Callable[[], None]


class _Writer(PickleWriter):
    def metadata(self, tensors: Sequence[StoredTensor]) -> None:
        self._object(
            _TYPES,
            "Metadata",
            {
                "state_dict_metadata": lambda: self._dict(tensors, self._name, self._described),
                "planner_data": lambda: self._dict(tensors, self._name, self._path),
                "storage_data": lambda: self._dict(tensors, self._index, self._place),
                "storage_meta": self._none,
                "version": lambda: self.text(_VERSION),
            },
        )

    def _described(self, stored: StoredTensor) -> None:
        shape = stored.info.shape
        chunk = {"offsets": lambda: self._size([0] * len(shape)), "sizes": lambda: self._size(shape)}

        def chunks() -> None:
            self.out += b"]"
            self._object(_TYPES, "ChunkStorageMetadata", chunk)
            self.out += b"a"

        attributes = {
            "properties": lambda: self._properties(stored.info),
            "size": lambda: self._size(shape),
            "chunks": chunks,
        }
        self._object(_TYPES, "TensorStorageMetadata", attributes)

    def _properties(self, info: TensorInfo) -> None:
        """Dtype, layout, gradient, memory format, pinned memory: nothing but the first is read any more."""
        self.again(global_opcode(_TYPES, "TensorProperties"))
        self.out += b")\x81("
        self.again(global_opcode("torch", torch_name(info.dtype)))
        self.again(global_opcode("torch.serialization", "_get_layout") + text_opcode("torch.strided") + b"\x85R")
        self.out += b"\x89"
        self.again(global_opcode(_TYPES, "_MEM_FORMAT_ENCODING") + b"K\x00\x85R")
        self.out += b"\x89tb"

    def _index(self, stored: StoredTensor) -> None:
        attributes = {
            "fqn": lambda: self._name(stored),
            "index": self._none,
            "offset": lambda: self._size([0] * len(stored.info.shape)),
        }
        self._object(_TYPES, "MetadataIndex", attributes)

    def _place(self, stored: StoredTensor) -> None:
        attributes: dict[str, _Write] = {
            "relative_path": lambda: self.text(stored.filename),
            "offset": lambda: self.number(stored.start),
            "length": lambda: self.number(stored.nbytes),
        }
        self._object(_FILES, "_StorageInfo", attributes)

    def _name(self, stored: StoredTensor) -> None:
        self.text(stored.info.name)

    def _path(self, stored: StoredTensor) -> None:
        """Where the tensor is in the state dict: under its whole name."""
        self._name(stored)
        self.out += b"\x85"

    def _none(self) -> None:
        self.out += b"N"

    def _size(self, sizes: Sequence[int]) -> None:
        self.again(global_opcode("torch", "Size"))
        self.numbers(sizes)
        self.out += b"\x85R"

    def _object(self, module: str, name: str, attributes: dict[str, _Write]) -> None:
        self.again(global_opcode(module, name))
        self.out += b")\x81}("
        for key, write in attributes.items():
            self.again(text_opcode(key))
            write()
        self.out += b"ub"

    def _dict(
        self,
        tensors: Sequence[StoredTensor],
        key: Callable[[StoredTensor], None],
        value: Callable[[StoredTensor], None],
    ) -> None:
        self.out += b"}"
        for start in range(0, len(tensors), _BATCH):
            self.out += b"("
            for stored in tensors[start : start + _BATCH]:
                key(stored)
                value(stored)
            self.out += b"u"
