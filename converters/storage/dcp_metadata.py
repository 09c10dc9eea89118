"""What a torch distributed checkpoint says of itself in its `.metadata`, checked: the chunks of each tensor. Pure.

`.metadata` is a pickle, which torch loads with all that a pickle can do. Here it is read by the interpreter that reads
files of `torch.save`, with the few classes that such a file needs as plain records: nothing is imported or called.

Source: torch/distributed/checkpoint/metadata.py and filesystem.py, `_StorageInfo`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from converters.errors import CheckpointError, Problem
from converters.storage.dcp_chunks import Chunk, tiling_fault
from converters.storage.formats import DISTRIBUTED
from converters.storage.safetensors_extents import MAX_RANK, MAX_REPORTED, is_addressable
from converters.storage.safetensors_index import filename_fault
from converters.storage.torch_descriptions import Global, Other, PickleFault, Record, Storage, Tensor, TorchDType
from converters.storage.torch_pickle import read_pickle
from converters.storage.torch_state_dict import StateDictFault, find_state_dict
from converters.tensor_info import DType, TensorInfo, parse_dtype
from converters.text import printable

MAX_METADATA_NBYTES: Final = 100_000_000
"""Largest `.metadata` that is read, in bytes."""

_TYPES: Final = "torch.distributed.checkpoint.metadata"
_OLD_TYPES: Final = "torch.distributed._shard.sharded_tensor.metadata"
_FILES: Final = "torch.distributed.checkpoint.filesystem"
_METADATA: Final = Global(_TYPES, "Metadata")
_TENSOR: Final = Global(_TYPES, "TensorStorageMetadata")
_BYTES: Final = Global(_TYPES, "BytesStorageMetadata")
_CHUNK: Final = Global(_TYPES, "ChunkStorageMetadata")
_INDEX: Final = Global(_TYPES, "MetadataIndex")
_PROPERTIES: Final = frozenset({Global(_TYPES, "TensorProperties"), Global(_OLD_TYPES, "TensorProperties")})
_STORAGE: Final = Global(_FILES, "_StorageInfo")
_UNUSED: Final = frozenset(
    {
        Global(_TYPES, "StorageMeta"),
        Global(_TYPES, "_MEM_FORMAT_ENCODING"),
        Global(_OLD_TYPES, "MEM_FORMAT_ENCODING"),
        Global(_FILES, "_StoragePrefix"),
        # Where the checkpoint was written; and how some versions of Python write a member of an enumeration.
        *(
            Global(module, f"{kind}Path")
            for module in ("pathlib", "pathlib._local")
            for kind in ("", "Posix", "Windows", "PurePosix", "PureWindows")
        ),
        Global("builtins", "getattr"),
    }
)
_RECORDS: Final = frozenset({_METADATA, _TENSOR, _BYTES, _CHUNK, _INDEX, _STORAGE}) | _PROPERTIES | _UNUSED

_DAMAGED: Final = "It was damaged, or is of a version that is not known; save the checkpoint again with torch."
_RESAVE: Final = (
    "If you trust its source, load it with torch.distributed.checkpoint, and save the model's state dict alone, again."
)


class StoredChunk(Struct, frozen=True):
    """Where a chunk is stored: `nbytes` of the file from `start` on, a whole archive of `torch.save`."""

    chunk: Chunk
    filename: str
    start: int
    nbytes: int


class DcpMetadata(Struct, frozen=True):
    """What `.metadata` says.

    Attributes:
        tensors: each tensor of the model's state dict, by name.
        chunks: for each of them, its chunks that hold anything, in the order of the files.
        notes: what was left out, or put together, in sentences.
    """

    tensors: Mapping[str, TensorInfo]
    chunks: Mapping[str, tuple[StoredChunk, ...]]
    notes: tuple[str, ...]


def parse_metadata(raw: bytes, where: str) -> DcpMetadata:
    """Read and check `.metadata`; the files that it names are not looked at.

    Args:
        raw: its content.
        where: how errors name it.

    Raises:
        CheckpointError: it is damaged, or asks for what no checkpoint needs; a tensor's chunks don't make it up; all
            problems at once.
    """
    try:
        unpickled = read_pickle(raw, records=_RECORDS)
    except PickleFault as fault:
        raise CheckpointError(str(fault), where, _DAMAGED) from None
    if unpickled.forbidden:
        raise CheckpointError(
            Problem(f"it asks for {printable(name)}, which no checkpoint needs; nothing was run", where, _RESAVE)
            for name in unpickled.forbidden
        )
    try:
        return _Parser(unpickled.value, where).parse()
    except _Fault as fault:
        raise CheckpointError(str(fault), where, _DAMAGED) from None


class _Fault(ValueError):  # noqa: N818 - it says what is wrong; the caller adds where
    """What is wrong, in one sentence."""


class _Parser:
    def __init__(self, value: object, where: str) -> None:
        metadata = _attributes(value, _METADATA)
        self.where = where
        self.described = _dict(metadata.get("state_dict_metadata"), "state_dict_metadata")
        self.paths = metadata.get("planner_data")
        self.places = self._read_places(_dict(metadata.get("storage_data"), "storage_data"))
        self.problems: list[Problem] = []

    def parse(self) -> DcpMetadata:
        try:
            state_dict = find_state_dict(self._nested())
        except StateDictFault as fault:
            raise CheckpointError(str(fault), self.where, fault.hint) from None
        tensors: dict[str, TensorInfo] = {}
        chunks: dict[str, tuple[StoredChunk, ...]] = {}
        for name, placeholder in state_dict.tensors.items():
            flat = placeholder.storage.key if isinstance(placeholder, Tensor) else name
            try:
                tensors[name], chunks[name] = self._read_tensor(name, flat)
            except _Fault as fault:
                self.problems.append(Problem(str(fault), f"{self.where}: {printable(name)}", _DAMAGED))
        if len(self.problems) > MAX_REPORTED:
            more = f"... and {len(self.problems) - MAX_REPORTED:,} more problems"
            self.problems[MAX_REPORTED:] = [Problem(more)]
        if self.problems:
            raise CheckpointError(self.problems)
        ordered = sorted(tensors, key=lambda name: _first_place(chunks[name]))
        return DcpMetadata({name: tensors[name] for name in ordered}, chunks, tuple(state_dict.notes))

    def _nested(self) -> dict[Any, Any]:
        """The state dict as it was saved, with placeholders for its tensors: a flattened name is split by its path."""
        paths = self.paths if isinstance(self.paths, dict) else {}
        root: dict[Any, Any] = {}
        for name, described in self.described.items():
            if not isinstance(name, str) or not isinstance(described, Record):
                raise _Fault("the names in state_dict_metadata are not text, or their values no tensors")
            path = paths.get(name, (name,))
            # The same tuple of many thousands could be the path, or the shape, of many thousands of tensors.
            if (
                not isinstance(path, tuple)
                or not 0 < len(path) <= MAX_RANK
                or not all(isinstance(part, str | int) for part in path)
            ):
                raise _Fault(f"the path of {printable(name)} is no list of keys")
            leaf: object = Other("an object")
            if described.kind == _TENSOR:
                # All that matters is that it is a tensor, and what it is called here.
                leaf = Tensor(Storage(name, None, 0), 0, (), (), "")
            elif described.kind != _BYTES:
                raise _Fault(f"{printable(name)} is neither a tensor nor an object")
            inner = root
            for part in path[:-1]:
                inner = inner.setdefault(part, {})
                if not isinstance(inner, dict):
                    raise _Fault(f"the path of {printable(name)} leads through a tensor")
            if path[-1] in inner:
                raise _Fault(f"two of its tensors have the path of {printable(name)}")
            inner[path[-1]] = leaf
        return root

    def _read_places(self, storage_data: Mapping[Any, object]) -> dict[tuple[str, tuple[int, ...]], Mapping[str, Any]]:
        """Where each chunk is stored, by the tensor's flattened name and the chunk's offsets."""
        places: dict[tuple[str, tuple[int, ...]], Mapping[str, Any]] = {}
        for key, value in storage_data.items():
            index = _attributes(key, _INDEX)
            name, offsets = index.get("fqn"), index.get("offset")
            if not isinstance(name, str):
                raise _Fault("a chunk belongs to no tensor")
            if offsets is None:
                continue  # an object, not a tensor
            found = name, _sizes(offsets, "the offsets of a chunk")
            if found in places:
                raise _Fault(f"a chunk of {printable(name)} is stored twice, at {list(found[1])}")
            places[found] = _attributes(value, _STORAGE)
        return places

    def _read_tensor(self, name: str, flat: str) -> tuple[TensorInfo, tuple[StoredChunk, ...]]:
        described = _attributes(self.described[flat], _TENSOR)
        info = TensorInfo(name, _sizes(described.get("size"), "its shape"), _dtype(described.get("properties")))
        if not is_addressable(info.shape):
            raise _Fault(f"shape {list(info.shape)} is larger than any memory")
        written = described.get("chunks")
        if not isinstance(written, list):
            raise _Fault("it has no list of chunks")
        stored = []
        for record in written:
            fields = _attributes(record, _CHUNK)
            chunk = Chunk(
                _sizes(fields.get("offsets"), "the offsets of a chunk"), _sizes(fields.get("sizes"), "a chunk's sizes")
            )
            # A rank that has nothing of the tensor may say so.
            if len(chunk.sizes) != len(info.shape) or chunk.size:
                stored.append(self._locate(flat, chunk))
        if fault := tiling_fault(info.shape, [each.chunk for each in stored]):
            raise _Fault(fault)
        return info, tuple(sorted(stored, key=lambda each: (each.filename, each.start)))

    def _locate(self, flat: str, chunk: Chunk) -> StoredChunk:
        place = self.places.get((flat, chunk.offsets))
        if place is None:
            raise _Fault(f"nothing says where its chunk at {list(chunk.offsets)} is stored")
        filename, start, nbytes = (place.get(key) for key in ("relative_path", "offset", "length"))
        if place.get("transform_descriptors"):
            what = printable(str(place["transform_descriptors"]), 100)
            raise _Fault(f"its chunks were changed on their way to the disk ({what}), which is not supported")
        if not isinstance(filename, str):
            raise _Fault("the name of the file of a chunk is no text")
        if fault := filename_fault(filename, DISTRIBUTED):
            raise _Fault(f"the file '{printable(filename)}' of a chunk {fault}")
        if type(start) is not int or type(nbytes) is not int or start < 0 or nbytes < 0:
            raise _Fault(f"its chunk at {list(chunk.offsets)} has no place in {printable(filename)}")
        return StoredChunk(chunk, filename, start, nbytes)


def _first_place(chunks: tuple[StoredChunk, ...]) -> tuple[str, int]:
    return (chunks[0].filename, chunks[0].start) if chunks else ("", 0)


def _attributes(value: object, kind: Global) -> Mapping[str, Any]:
    if not isinstance(value, Record) or value.kind != kind:
        raise _Fault(f"it is not as torch writes it: a {kind.name} is missing")
    if not isinstance(value.state, dict):
        raise _Fault(f"it is not as torch writes it: a {kind.name} has no attributes")
    return value.state


def _dict(value: object, what: str) -> Mapping[Any, object]:
    if not isinstance(value, dict):
        raise _Fault(f"it is not as torch writes it: {what} is missing")
    return value


def _sizes(value: object, what: str) -> tuple[int, ...]:
    if isinstance(value, tuple) and len(value) > MAX_RANK:
        raise _Fault(f"{what} has {len(value):,} dimensions; at most {MAX_RANK} are supported")
    if not isinstance(value, tuple) or not all(type(size) is int and 0 <= size < 2**63 for size in value):
        raise _Fault(f"{what}: whole numbers are expected, none of them negative")
    return value


def _dtype(properties: object) -> DType:
    state = properties.state if isinstance(properties, Record) and properties.kind in _PROPERTIES else None
    found = state[0] if isinstance(state, tuple) and state else None
    if not isinstance(found, TorchDType):
        raise _Fault("nothing says of what dtype it is")
    try:
        return parse_dtype(found.name)
    except ValueError:
        raise _Fault(f"its dtype is torch.{found.name}, which is not supported") from None
