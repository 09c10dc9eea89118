"""Indexes of sharded checkpoints: what they name, and whether it is there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tests.hostile.build import FLOATS, tensors, torch_file, write
from tests.hostile.case import CHECKPOINT, Case
from tests.hostile.payloads import run_command
from tests.pickles import pickled, tensor

KIND: Final = "index"
INDEX: Final = "in/model.safetensors.index.json"
FIRST: Final = "model-00001-of-00002.safetensors"
SECOND: Final = "model-00002-of-00002.safetensors"
RIGHT: Final = {"a": FIRST, "b": SECOND}
TENSORS: Final = {"a": FLOATS, "b": FLOATS}


def _index(weight_map: Mapping[str, object], **more: object) -> str:
    return json.dumps({"weight_map": weight_map, **more})


def _files(index: str | bytes, **more: bytes) -> dict[str, bytes | str]:
    shards: dict[str, bytes | str] = {f"in/{FIRST}": tensors("a"), f"in/{SECOND}": tensors("b")}
    return {**shards, **{f"in/{name}": content for name, content in more.items()}, INDEX: index}


NAMES: Final[dict[str, tuple[object, str]]] = {
    "a path upwards": ("../outside.safetensors", "is not a plain file name"),
    "a path upwards, far": ("../" * 20 + "etc/w.safetensors", "is not a plain file name"),
    "two dots": ("..", "is not a .safetensors file"),
    "a file of the system": ("/etc/passwd", "is not a .safetensors file"),
    "an absolute path": ("/etc/weights.safetensors", "is not a plain file name"),
    "a folder": ("sub/model.safetensors", "is not a plain file name"),
    "a path of Windows": ("..\\model.safetensors", "is a Windows path"),
    "a drive": ("C:model.safetensors", "is a Windows path"),
    "a server": ("\\\\server\\share\\m.safetensors", "is a Windows path"),
    "a URL": ("https://example.org/m.safetensors", "is a URL"),
    "a URL of a file": ("file:///m.safetensors", "is a URL"),
    "a zero in the name": ("m\0.safetensors", "is not a plain file name"),
    "a hidden file": (".hidden.safetensors", "is not a plain file name"),
    "only a suffix": (".safetensors", "is not a .safetensors file"),
    "no name": ("", "is not a .safetensors file"),
    "a pickle": ("pytorch_model.bin", "is not a .safetensors file"),
    "another suffix behind it": ("model.safetensors.bin", "is not a .safetensors file"),
    "a home": ("~/m.safetensors", "is not a plain file name"),
    "a device": ("/dev/zero.safetensors", "is not a plain file name"),
    "null": (None, "expected the name of a file, got null"),
    "a count of 5,000 digits": ("m-1-of-" + "9" * 5000 + ".safetensors", "the file is missing"),
    "a number": (7, "expected the name of a file, got 7"),
    "a list": (["a"], "expected the name of a file, got a list of 1"),
    "an object": ({}, "expected the name of a file, got an object"),
    "a file that is missing": ("model-00003-of-00002.safetensors", "the file is missing"),
    "a name of 5,000 characters": ("x" * 5000 + ".safetensors", "the file is missing"),
    "a name that commands the terminal": ("\x1b[2J\u202e.safetensors", r"\x1b[2J\u202e.safetensors"),
    "a name with a line break": ("a\nb.safetensors", r"a\x0ab.safetensors"),
    "a shard that lacks it": (FIRST, f"the index says that {FIRST} holds this tensor"),
}
TEXTS: Final[dict[str, tuple[str | bytes, str]]] = {
    "empty": ("", "not JSON"),
    "a list": ("[]", "expected a JSON object, got a list of 0"),
    "no weight_map": ("{}", "expected a 'weight_map' from tensor to file, got none"),
    "an empty weight_map": ('{"weight_map": {}}', "got an object"),
    "a list as weight_map": ('{"weight_map": ["a"]}', "got a list of 1"),
    "null as weight_map": ('{"weight_map": null}', "got null"),
    "a tensor twice": (f'{{"weight_map": {{"a": "{FIRST}", "a": "{SECOND}"}}}}', "the key 'a' occurs twice"),
    "two weight_maps": ('{"weight_map": 1, "weight_map": {}}', "the key 'weight_map' occurs twice"),
    "a lone surrogate": ('{"weight_map": {"\\ud800": "x"}}', "lone surrogate"),
    "nested 100,000 times": ("[" * 100_000, "nested too deeply"),
    "NaN": ('{"metadata": NaN}', "NaN is not JSON"),
    "no UTF-8": (b"\xff\xfe{}", "not UTF-8"),
    "a page of HTML": ("<!DOCTYPE html><html></html>", "not JSON"),
    "text as total_size": (_index(RIGHT, metadata={"total_size": "20"}), "expected bytes as 'metadata.total_size'"),
    "true as total_size": (_index(RIGHT, metadata={"total_size": True}), "got true"),
    "a negative total_size": (_index(RIGHT, metadata={"total_size": -1}), "got -1"),
    "metadata that is a list": (_index(RIGHT, metadata=[1]), "expected an object as 'metadata'"),
    "a tensor that it doesn't mention": (_index({"a": FIRST}), "the shard model-00002-of-00002.safetensors"),
    "50,000 names of missing files": (
        _index({f"t{i}": f"m{i}.safetensors" for i in range(50_000)}),
        "the file is missing",
    ),
    "a million commas": ('{"weight_map": [' + "1," * 1_000_001 + "1]}", "more than 1,000,000 values"),
}


def _refused() -> Iterator[Case]:
    for what, (name, says) in NAMES.items():
        yield Case(
            KIND,
            f"file name: {what}",
            _files(_index({**RIGHT, "c": name})),
            CHECKPOINT,
            ("safetensors.index.json", says),
        )
    for what, (text, says) in TEXTS.items():
        yield Case(KIND, what, _files(text), CHECKPOINT, (says,))
    yield Case(KIND, "65 MB", _oversized, CHECKPOINT, ("at most 64,000,000 bytes",))
    right = _index(RIGHT)
    yield Case(
        KIND,
        "a tensor in two shards",
        {**_files(_index({"a": FIRST, "b": SECOND})), f"in/{SECOND}": tensors("a", "b")},
        CHECKPOINT,
        (SECOND, f"this tensor is in {FIRST}, too"),
    )
    yield Case(
        KIND,
        "a single file beside it",
        {**_files(right), "in/model.safetensors": tensors("a")},
        CHECKPOINT,
        ("ambiguous",),
    )
    yield Case(
        KIND,
        "a second index",
        {**_files(right), "in/other.safetensors.index.json": right},
        CHECKPOINT,
        ("Several indexes are here",),
    )
    yield Case(
        KIND,
        "a shard that is a pickle with code",
        _shard_with_payload,
        CHECKPOINT,
        ("pytorch_model-00001-of-00001.bin", "posix.system"),
    )
    yield Case(
        KIND,
        "shards of two formats",
        {**_files(right), f"in/{SECOND}": torch_file({"b": tensor()})},
        CHECKPOINT,
        ("one checkpoint has files of one format",),
    )
    yield Case(
        KIND,
        "two wrong shards, both told",
        {**_files(right), f"in/{FIRST}": b"short", f"in/{SECOND}": b""},
        CHECKPOINT,
        ("2 problems", FIRST, SECOND),
    )


def _oversized(root: Path) -> None:
    write(root / INDEX, "{")
    with (root / INDEX).open("r+b") as file:
        file.truncate(65_000_000)


def _shard_with_payload(root: Path) -> None:
    name = "pytorch_model-00001-of-00001.bin"
    write(root / "in" / name, torch_file({"a": tensor(), "b": run_command(root)}))
    write(root / "in/pytorch_model.bin.index.json", json.dumps({"weight_map": {"a": name}}))


def _accepted() -> Iterator[Case]:
    right: dict[str, dict[str, Any]] = {
        "no metadata": {},
        "metadata of null": {"metadata": None},
        "a total_size with a fraction": {"metadata": {"total_size": 48.0}},
        "keys of its own": {"metadata": {"total_size": 48, "note": ["x"]}, "extra": {"a": 1}},
    }
    for what, more in right.items():
        yield Case(KIND, what, _files(_index(RIGHT, **more)), holds=TENSORS)
    wrong_size = _files(_index(RIGHT, metadata={"total_size": 10**30}))
    yield Case(
        KIND,
        "a wrong total_size is a note",
        wrong_size,
        holds=TENSORS,
        words=("convert", "--spec", "@spec.yaml", "@in", "@outputs/out"),
        says=("metadata.total_size is 1,000",),
    )
    spaced = {f"in/{name}": tensors(key) for key, name in {"a": "a b.safetensors", "b": "ü-模.safetensors"}.items()}
    index = _index({"a": "a b.safetensors", "b": "ü-模.safetensors"})
    yield Case(KIND, "files with odd names", {**spaced, INDEX: index}, holds=TENSORS)
    names = [f"t{place}" for place in range(2000)]
    shards = {f"in/m{place:05d}.safetensors": tensors(f"t{place}") for place in range(100)}
    yield Case(
        KIND,
        "100 shards",
        {**shards, INDEX: _index({name: f"m{place:05d}.safetensors" for place, name in enumerate(names[:100])})},
        holds=dict.fromkeys(names[:100], FLOATS),
    )
    torch_shard = {"in/pytorch_model-00001-of-00001.bin": torch_file({"a": tensor()})}
    yield Case(
        KIND,
        "a shard of torch.save",
        {**torch_shard, "in/pytorch_model.bin.index.json": _index({"a": "pytorch_model-00001-of-00001.bin"})},
        holds={"a": FLOATS},
    )
    yield Case(
        KIND,
        "training state beside it, with code",
        {**_files(_index(RIGHT)), "in/training_args.bin": pickled({"never": "looked at"})},
        holds=TENSORS,
    )


CASES: Final = (*_refused(), *_accepted())
