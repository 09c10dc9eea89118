"""Distributed checkpoints: a `.metadata` that lies about chunks, or wants to run something."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.hostile.build import FLOATS, torch_file, write
from tests.hostile.case import CHECKPOINT, Case
from tests.hostile.payloads import run_command
from tests.pickles import Raw, call, name, pickled, record, tensor

KIND: Final = "distributed"
TYPES: Final = "torch.distributed.checkpoint.metadata"
FILES: Final = "torch.distributed.checkpoint.filesystem"
FILE: Final = "__0_0.distcp"
HALVES: Final = ({"offsets": (0, 0), "sizes": (1, 3)}, {"offsets": (1, 0), "sizes": (1, 3)})
ARCHIVE: Final = torch_file(tensor((2, 3), (3, 1)))
ROWS: Final = tuple(torch_file(tensor((1, 3), (3, 1), size=3), {"0": FLOATS[at : at + 12]}) for at in (0, 12))

Chunk = Mapping[str, Any]


def size(*sizes: object) -> Raw:
    """A `torch.Size`."""
    return call("torch", "Size", tuple(sizes))


def properties(dtype: str = "float32") -> Raw:
    """What `.metadata` says of a tensor, beside its shape."""
    state = (name("torch", dtype), call("torch.serialization", "_get_layout", "torch.strided"), False, None, False)
    return record(TYPES, "TensorProperties", state)


def described(shape: Sequence[object], parts: Sequence[Chunk], **changes: object) -> Raw:
    """A tensor and its chunks."""
    written = [
        record(TYPES, "ChunkStorageMetadata", {"offsets": size(*each["offsets"]), "sizes": size(*each["sizes"])})
        for each in parts
    ]
    return record(
        TYPES, "TensorStorageMetadata", {"properties": properties(), "size": size(*shape), "chunks": written} | changes
    )


def index(key: str, offsets: Sequence[object] | None) -> Raw:
    """The key of a chunk's place."""
    return record(
        TYPES, "MetadataIndex", {"fqn": key, "index": None, "offset": size(*offsets) if offsets is not None else None}
    )


def place(start: object = 0, nbytes: object = len(ARCHIVE), file: object = FILE, **more: object) -> Raw:
    """The place of a chunk."""
    return record(FILES, "_StorageInfo", {"relative_path": file, "offset": start, "length": nbytes, **more})


def metadata(tensors: Mapping[object, object], places: Sequence[tuple[object, object]], **changes: object) -> bytes:
    """A `.metadata`."""
    paths = {key: (key,) for key in tensors}
    pairs = b"}(" + b"".join(bytes(each) for pair in places for each in pair if isinstance(each, bytes)) + b"u"
    state = {"state_dict_metadata": dict(tensors), "planner_data": paths, "storage_data": Raw(pairs)} | changes
    return pickled(record(TYPES, "Metadata", state))


def one(shape: Sequence[object] = (2, 3), chunks: Sequence[Chunk] | None = None, **changes: object) -> bytes:
    """A `.metadata` of one tensor `a`, in one chunk unless told otherwise."""
    chunks = [{"offsets": (0,) * len(shape), "sizes": tuple(shape)}] if chunks is None else chunks
    places = changes.pop("places", [(index("a", each["offsets"]), place()) for each in chunks])
    return metadata({"a": described(shape, chunks)}, places, **changes)  # type: ignore[arg-type]


def _files(content: bytes, data: bytes = ARCHIVE) -> dict[str, bytes | str]:
    return {"in/.metadata": content, f"in/{FILE}": data}


def _placed(*args: object, **more: object) -> bytes:
    return one(places=[(index("a", (0, 0)), place(*args, **more))])


def _grid(rows: int) -> bytes:
    """One tensor in a column of so many chunks beside each other, the last of them twice."""
    chunks = [{"offsets": (0, column), "sizes": (1, 1)} for column in range(rows - 1)]
    return one((1, rows), [*chunks, {"offsets": (0, rows - 2), "sizes": (1, 1)}])


def _long(*, in_paths: bool = False) -> bytes:
    """5,000 tensors that share one shape of 50,000 sizes, or one path of 50,000 keys."""
    long = Raw(b"(" + b"K\1" * 50_000 + b"tr\1\1\0\0")
    again = Raw(b"j\1\1\0\0")
    if in_paths:
        tensors = {f"t{key}": described((2, 3), []) for key in range(5000)}
        paths = {f"t{key}": again if key else long for key in range(5000)}
        return metadata(tensors, [], planner_data=paths)
    tensors = {
        f"t{key}": record(
            TYPES, "TensorStorageMetadata", {"properties": properties(), "size": again if key else long, "chunks": []}
        )
        for key in range(5000)
    }
    return metadata(tensors, [])


FAULTS: Final[dict[str, tuple[bytes, str]]] = {
    "an empty .metadata": (b"", "the pickle is cut off"),
    "a .metadata of JSON": (b'{"a": 1}', "which torch never writes"),
    "a .metadata that is cut off": (one()[:-20], "the pickle is cut off"),
    "a .metadata of something else": (pickled({"a": 1}), "a Metadata is missing"),
    "no tensors": (metadata({}, []), "expected a state dict"),
    "no state_dict_metadata": (pickled(record(TYPES, "Metadata", {})), "state_dict_metadata is missing"),
    "a Metadata without attributes": (pickled(record(TYPES, "Metadata", None)), "has no attributes"),
    "places that are a list": (one(storage_data=[]), "storage_data is missing"),
    "a name that is a number": (metadata({7: described((2, 3), [])}, []), "not text"),
    "a tensor that is text": (metadata({"a": "b"}, []), "not text, or their values no tensors"),
    "a negative shape": (one((-2, 3)), "none of them negative"),
    "a shape of true": (one((True, 3)), "whole numbers"),
    "a shape beyond 64 bits": (one((2**64, 3)), "whole numbers"),
    "a shape beyond memory": (one((2**40, 2**40)), "larger than any memory"),
    "100 dimensions": (one((1,) * 100), "100 dimensions"),
    "no chunks": (one(chunks=[]), "chunks have 0 of its 6 elements"),
    "chunks that are no list": (
        metadata({"a": described((2, 3), [], chunks="x")}, []),
        "no list of chunks",
    ),
    "half of its chunks": (one(chunks=HALVES[:1]), "chunks have 3 of its 6 elements"),
    "a chunk twice": (one(chunks=[*HALVES, HALVES[0]]), "stored twice"),
    "chunks that overlap": (
        one(chunks=[HALVES[0], {"offsets": (0, 1), "sizes": (1, 2)}, HALVES[1]]),
        "overlap",
    ),
    "a chunk that sticks out": (one(chunks=[{"offsets": (1, 0), "sizes": (2, 3)}]), "is no part of shape"),
    "a chunk of another rank": (one(chunks=[{"offsets": (0,), "sizes": (6,)}]), "is no part of shape"),
    "a chunk at 2**62": (one(chunks=[{"offsets": (2**62, 0), "sizes": (2, 3)}]), "is no part of shape"),
    "a chunk without a place": (one(places=[]), "nothing says where its chunk"),
    "a place that is no place": (one(places=[(index("a", (0, 0)), Raw(b"N"))]), "a _StorageInfo is missing"),
    "a place of nobody": (one(places=[(Raw(b"X\1\0\0\0a"), place())]), "a MetadataIndex is missing"),
    "a place at -1": (_placed(-1), "has no place"),
    "a place of -1 bytes": (_placed(0, -1), "has no place"),
    "a place beyond the file": (_placed(10**15), FILE),
    "a place of 10**15 bytes": (_placed(0, 10**15), FILE),
    "a place of 0 bytes": (_placed(0, 0), FILE),
    "a place in the middle of an archive": (_placed(10, 50), FILE),
    "chunks in the same bytes": (
        one(chunks=HALVES, places=[(index("a", each["offsets"]), place(0, len(ROWS[0]))) for each in HALVES]),
        "overlap",
    ),
    "a path upwards": (_placed(file="../secret.distcp"), "is not a plain file name"),
    "an absolute path": (_placed(file="/etc/secret.distcp"), "is not a plain file name"),
    "a path of Windows": (_placed(file="C:\\secret.distcp"), "is a Windows path"),
    "a file with another suffix": (_placed(file="secret.bin"), "is not a .distcp file"),
    "a zero in a file's name": (_placed(file="a\0.distcp"), "is not a plain file name"),
    "a file's name that is a number": (_placed(file=7), "is no text"),
    "a file's name that commands the terminal": (_placed(file="\x1b[2J.bin"), r"\x1b[2J.bin"),
    "a file that is missing": (_placed(file="__9_9.distcp"), "__9_9.distcp"),
    "changed on their way": (_placed(transform_descriptors=["zlib"]), "not supported"),
    "an unknown dtype": (
        metadata({"a": described((2, 3), [], properties=properties("complex128"))}, []),
        "not supported",
    ),
    "no dtype": (metadata({"a": described((2, 3), [], properties=None)}, []), "of what dtype it is"),
    "a path through a tensor": (
        metadata(
            {"a": described((2, 3), []), "b": described((2, 3), [])},
            [],
            planner_data={"a": ("x",), "b": ("x", "y")},
        ),
        "leads through a tensor",
    ),
    "a path that is text": (one(planner_data={"a": "a"}), "no list of keys"),
    "two tensors with one path": (
        metadata({"a": described((2, 3), []), "b": described((2, 3), [])}, [], planner_data={"a": ("x",), "b": ("x",)}),
        "two of its tensors have the path",
    ),
    "a path of 50,000 keys, shared by 5,000 tensors": (_long(in_paths=True), ".metadata"),
    "a shape of 50,000 sizes, shared by 5,000 tensors": (_long(), ".metadata"),
    "3,000 chunks beside each other, one of them twice": (_grid(3000), "stored twice"),
}


def _beside(count: int) -> bytes:
    """Chunks beside each other that all reach as far along the first axis; the last two overlap."""
    chunks = [{"offsets": (0, 2 * column), "sizes": (1, 2)} for column in range(count)]
    return one((1, 2 * count), [*chunks[:-1], {"offsets": (0, 2 * count - 3), "sizes": (1, 2)}])


def _refused() -> Iterator[Case]:
    for what, (content, says) in FAULTS.items():
        yield Case(KIND, what, _files(content), CHECKPOINT, (says,))
    yield Case(
        KIND, "3,000 chunks beside each other, two of which overlap", _files(_beside(3000)), CHECKPOINT, ("overlap",)
    )
    data: dict[str, tuple[bytes, str]] = {
        "an empty file": (b"", FILE),
        "a file that is cut off": (ARCHIVE[:-5], FILE),
        "a file of something else": (b"x" * len(ARCHIVE), FILE),
        "another shape in the file": (torch_file(tensor((3, 2), (2, 1))), "as .metadata says"),
        "another dtype in the file": (torch_file(tensor(kind="IntStorage")), "as .metadata says"),
        "a dict in the file": (torch_file({"a": tensor()}), FILE),
        "a view that repeats in the file": (torch_file(tensor((2, 3), (0, 0), size=1), {"0": FLOATS[:4]}), "repeat"),
    }
    for what, (content, says) in data.items():
        yield Case(KIND, what, _files(_placed(0, len(content)), content), CHECKPOINT, (says,))
    payloads: dict[str, Callable[[Path], Mapping[str, bytes | str]]] = {
        ".metadata that runs os.system": lambda root: _files(one(planner_data=run_command(root))),
        ".metadata that runs it by getattr": lambda _: _files(
            one(planner_data=Raw(call("builtins", "getattr", name("posix", "system"), "__call__")))
        ),
        ".metadata of a class of its own": lambda _: _files(one(planner_data=record("evil", "Plan", {}))),
    }
    for what, make in payloads.items():
        yield Case(KIND, what, _written(make), CHECKPOINT, (".metadata", "nothing was run"))
    yield Case(KIND, "a chunk that runs os.system", _evil_chunk, CHECKPOINT, (FILE, "posix.system", "nothing was run"))
    yield Case(KIND, "101 MB of .metadata", _oversized, CHECKPOINT, ("at most 100,000,000 bytes",))


def _written(make: Callable[[Path], Mapping[str, bytes | str]]) -> Callable[[Path], None]:
    def write_all(root: Path) -> None:
        for path, content in make(root).items():
            write(root / path, content)

    return write_all


def _evil_chunk(root: Path) -> None:
    content = torch_file([tensor(), run_command(root)])
    for path, each in _files(_placed(0, len(content)), content).items():
        write(root / path, each)


def _oversized(root: Path) -> None:
    write(root / "in/.metadata", one())
    with (root / "in/.metadata").open("r+b") as file:
        file.truncate(101_000_000)


def _accepted() -> Iterator[Case]:
    holds = {"a": FLOATS}
    yield Case(KIND, "one chunk", _files(one()), holds=holds)
    both = [
        (index("a", (0, 0)), place(0, len(ROWS[0]))),
        (index("a", (1, 0)), place(len(ROWS[0]), len(ROWS[1]))),
    ]
    yield Case(KIND, "two chunks", _files(one(chunks=HALVES, places=both), b"".join(ROWS)), holds=holds)
    swapped = [
        (index("a", (1, 0)), place(0, len(ROWS[1]))),
        (index("a", (0, 0)), place(len(ROWS[1]), len(ROWS[0]))),
    ]
    yield Case(
        KIND,
        "two chunks the other way round",
        _files(one(chunks=HALVES, places=swapped), b"".join(ROWS[::-1])),
        holds=holds,
    )
    empty = [*HALVES, {"offsets": (2, 0), "sizes": (0, 3)}]
    yield Case(KIND, "a rank without a part", _files(one(chunks=empty, places=both), b"".join(ROWS)), holds=holds)
    gap = _files(_placed(9), b"something" + ARCHIVE)
    yield Case(KIND, "bytes before a chunk", gap, holds=holds)
    single = torch_file(tensor((), (), size=1), {"0": FLOATS[:4]})
    scalar = one((), places=[(index("a", ()), place(0, len(single)))])
    yield Case(KIND, "no dimension", _files(scalar, single), holds={"a": FLOATS[:4]})
    column = torch_file(tensor((1, 1), (1, 1), size=1), {"0": FLOATS[:4]})
    chunks = [{"offsets": (0, at), "sizes": (1, 1)} for at in range(300)]
    places = [(index("a", each["offsets"]), place(at * len(column), len(column))) for at, each in enumerate(chunks)]
    many = _files(one((1, 300), chunks, places=places), column * 300)
    yield Case(KIND, "300 chunks beside each other", many, holds={"a": FLOATS[:4] * 300})


CASES: Final = (*_refused(), *_accepted())
