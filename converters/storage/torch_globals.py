"""What the names in a pickle stand for: the few that tensors need, as descriptions. Nothing is ever imported or called.

Sources: torch/_utils.py (the `_rebuild_*` functions and their arguments), torch/serialization.py (persistent ids).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeGuard

from converters.storage.safetensors_extents import MAX_RANK
from converters.storage.torch_descriptions import (
    Global,
    Other,
    PickleFault,
    Record,
    Storage,
    StorageType,
    Tensor,
    TorchDType,
    Unreadable,
)

_MAX_INT: Final = 2**63

STORAGE_DTYPES: Final = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
}
"""torch's classes of typed storages, and its names of their dtypes; newer dtypes have untyped storages only."""

ITEM_NBYTES: Final = {
    **dict.fromkeys(("bool", "uint8", "int8", "qint8", "quint8"), 1),
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"), 1),
    **dict.fromkeys(("float4_e2m1fn_x2",), 1),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2),
    **dict.fromkeys(("float32", "int32", "uint32", "qint32", "complex32"), 4),
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8),
    "complex128": 16,
}
"""Bytes of an element, by torch's name of the dtype."""


def look_up(module: str, name: str) -> object:
    """What a global stands for, or the `Global` itself, which may be called if `CALLS` knows it.

    Raises:
        PickleFault: it is none of those that tensors need.
    """
    found = Global(module, name)
    if found in CALLS or found in _TENSOR_CLASSES:
        return found
    if module in {"torch", "torch.cuda"} and name in STORAGE_DTYPES:
        return StorageType(STORAGE_DTYPES[name])
    if module in {"torch", "torch.storage"} and name in {"UntypedStorage", "_UntypedStorage"}:
        return StorageType(None)
    if module == "torch" and name in ITEM_NBYTES:
        return TorchDType(name)
    if module == "torch" and name in _QUANTIZATION_SCHEMES:
        return Other("a quantization scheme")
    raise PickleFault(f"it asks for {found}")


def storage_of(parts: object) -> Storage:
    """The storage that a persistent id names: ('storage', type, key, device, size), and more in older files.

    Raises:
        PickleFault: it is none.
    """
    match parts:
        case ("storage", StorageType(dtype=dtype), str(key), str(), size, *rest) if _is_size(size):
            if rest not in ([], [None]):
                raise PickleFault("a storage is a view of another one, as torch wrote them before version 0.4")
            return Storage(key, dtype, size)
    raise PickleFault("a persistent id is no storage")


def _is_size(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0


def _sizes(value: object) -> tuple[int, ...]:
    # Before anything looks at each of them: a pickle can hand the same long tuple to a thousand calls.
    if isinstance(value, tuple) and len(value) > MAX_RANK:
        raise PickleFault(f"a tensor has {len(value):,} dimensions; at most {MAX_RANK} are supported")
    if not isinstance(value, tuple) or not all(map(_is_size, value)):
        raise PickleFault("a tensor's sizes and strides must be whole numbers, none of them negative")
    return value


def _tensor(storage: object, offset: object, shape: object, strides: object, dtype: str | None) -> Tensor:
    if not isinstance(storage, Storage) or not _is_size(offset):
        raise PickleFault("a tensor needs a storage, and an offset in it")
    dtype = dtype or storage.dtype
    if dtype is None:
        raise PickleFault("a tensor over plain bytes has no dtype")
    sizes, steps = _sizes(shape), _sizes(strides)
    if len(sizes) != len(steps):
        raise PickleFault(f"a tensor has {len(sizes)} sizes, but {len(steps)} strides")
    return Tensor(storage, offset, sizes, steps, dtype)


def _rebuild_tensor(storage: object, offset: object, shape: object, strides: object) -> object:
    return _tensor(storage, offset, shape, strides, None)


def _rebuild_tensor_v2(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    _requires_grad: object,
    _hooks: object,
    metadata: object = None,
) -> object:
    return _unless_lazy(_tensor(storage, offset, shape, strides, None), metadata)


def _rebuild_tensor_v3(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    _requires_grad: object,
    _hooks: object,
    dtype: object,
    metadata: object = None,
) -> object:
    if not isinstance(dtype, TorchDType):
        raise PickleFault("a tensor's dtype is no dtype")
    return _unless_lazy(_tensor(storage, offset, shape, strides, dtype.name), metadata)


def _unless_lazy(tensor: Tensor, metadata: object) -> object:
    """A conjugated or negated view holds other values than its bytes."""
    if isinstance(metadata, dict) and (metadata.get("conj") or metadata.get("neg")):
        return Unreadable("a conjugated or negated view (call .resolve_conj().resolve_neg() before saving)")
    return tensor


def _rebuild_parameter(data: object, *_: object) -> object:
    if not isinstance(data, Tensor | Unreadable):
        raise PickleFault("a parameter holds no tensor")
    return data


def _rebuild_from_type(function: object, kind: object, arguments: object, _state: object) -> object:
    """A tensor with attributes of its own, which are left."""
    if kind not in _TENSOR_CLASSES or not isinstance(function, Global) or not isinstance(arguments, tuple):
        raise PickleFault("a tensor of a class that is not torch's own")
    return call(function, arguments)


def _unreadable(reason: str) -> Callable[..., object]:
    return lambda *_: Unreadable(reason)


def _other(what: str) -> Callable[..., object]:
    return lambda *_: Other(what)


def _ordered_dict(items: object = ()) -> object:
    pairs = items if isinstance(items, list | tuple) else None
    if pairs is None or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):  # noqa: PLR2004
        raise PickleFault("an OrderedDict is made from what is no list of pairs")
    made: dict[Any, object] = {}
    for key, value in pairs:
        made[plain_key(key)] = value
    return made


def _size(items: object = ()) -> object:
    return _sizes(tuple(items[: MAX_RANK + 1])) if isinstance(items, list) else _sizes(items)


_QUANTIZATION_SCHEMES: Final = frozenset(
    f"per_{of}_{kind}" for of in ("tensor", "channel") for kind in ("affine", "symmetric", "affine_float_qparams")
)
_PARAMETER: Final = Global("torch.nn.parameter", "Parameter")
_TENSOR_CLASSES: Final = frozenset(
    {_PARAMETER, Global("torch.nn.parameter", "Buffer"), Global("torch", "Tensor"), Global("torch._tensor", "Tensor")}
)

CALLS: Final[dict[Global, Callable[..., object]]] = {
    Global("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    Global("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    Global("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    Global("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    Global("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    Global("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    _PARAMETER: _rebuild_parameter,
    Global("torch._utils", "_rebuild_sparse_tensor"): _unreadable("a sparse tensor"),
    Global("torch._utils", "_rebuild_nested_tensor"): _unreadable("a nested tensor"),
    Global("torch._utils", "_rebuild_qtensor"): _unreadable("a quantized tensor of torch's own kind"),
    Global("torch._utils", "_rebuild_meta_tensor_no_storage"): _unreadable("a tensor on the meta device, without data"),
    Global("torch.serialization", "_get_layout"): _other("a layout"),
    Global("torch", "device"): _other("a device"),
    Global("torch", "Size"): _size,
    Global("collections", "OrderedDict"): _ordered_dict,
    Global("collections", "Counter"): _other("a Counter"),
    Global("collections", "defaultdict"): lambda *_: {},
    Global("argparse", "Namespace"): _other("a Namespace"),
    Global("_codecs", "encode"): _other("bytes"),
    **{
        Global(module, name): call
        for module in ("builtins", "__builtin__")
        for name, call in (
            ("set", _other("a set")),
            ("frozenset", _other("a set")),
            ("complex", _other("a number")),
            ("int", _other("a number")),
            ("float", _other("a number")),
            ("list", _other("a list")),
            ("dict", _ordered_dict),
        )
    },
    Global("numpy", "dtype"): _other("a dtype"),
    Global("numpy.core.multiarray", "scalar"): _other("a number"),
    Global("numpy._core.multiarray", "scalar"): _other("a number"),
}
"""Every global that may be called, and what that gives: a description, whatever the arguments."""


def call(function: Global, arguments: tuple[object, ...]) -> object:
    """What a call in a pickle gives.

    Raises:
        PickleFault: the function is none of `CALLS`, or the arguments are not what torch writes.
    """
    handler = CALLS.get(function)
    if handler is None:
        raise PickleFault(f"it calls {function}")
    try:
        return handler(*arguments)
    except TypeError:  # too few or too many
        raise PickleFault(f"it calls {function} with {len(arguments)} arguments, which is not as torch does") from None


def plain_key(key: object) -> object:
    """Check that a key of a dict is plain, and give it in a form that takes no longer to look up than others.

    Hashing nested tuples, each twice in the next, takes longer than the universe. Numbers of any size, and tuples of
    numbers, can be chosen such that all have one hash; text can't, since Python draws its hash anew in each process.

    Raises:
        PickleFault: it is not plain.
    """
    if isinstance(key, str | bytes | float | None | TorchDType | Record):
        return key
    if isinstance(key, int) and abs(key) <= _MAX_INT:
        return key
    if isinstance(key, tuple) and len(key) <= MAX_RANK:
        if all(isinstance(part, str | bytes) for part in key):
            return key
        if all(isinstance(part, str | bytes | int | float | None) for part in key):
            return tuple(part if isinstance(part, str | bytes) else str(part) for part in key)
    raise PickleFault("the key of a dict is neither text nor a number")
