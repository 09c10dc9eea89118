"""Weights that come and go: a model's blocks hold theirs only while they run, so its size isn't bounded by memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from converters.storage.base import CheckpointReader
from converters.torch_dtypes import to_torch


def read_tensor(reader: CheckpointReader, name: str) -> Tensor:
    """A tensor of a checkpoint, in its stored dtype, in memory of its own.

    Raises:
        CheckpointError: it can't be read.
    """
    info = reader.tensors[name]
    dtype = to_torch(info.dtype)
    if info.size == 0:
        return torch.empty(info.shape, dtype=dtype)
    data = bytearray(info.nbytes)
    reader.read_into(name, 0, memoryview(data))
    return torch.frombuffer(data, dtype=dtype).reshape(info.shape)


def find_blocks(module: nn.Module) -> dict[str, nn.Module]:
    """The blocks of a model in order, by name: the children of its module lists that have parameters.

    Some have dicts with numbers in place of lists. A list within a block (of experts, say) is a part of that block.
    """
    found: dict[str, nn.Module] = {}
    for name, inner in module.named_modules():
        numbered = isinstance(inner, nn.ModuleDict) and all(key.isdecimal() for key in inner)
        if (isinstance(inner, nn.ModuleList) or numbered) and not any(name.startswith(f"{block}.") for block in found):
            children = ((f"{name}.{child}", block) for child, block in inner.named_children())
            found.update((child, block) for child, block in children if next(block.parameters(), None) is not None)
    return found


def set_tensor(module: nn.Module, name: str, value: Tensor) -> None:
    """Put a parameter or buffer in its place, under every name that its module shares it by."""
    path, _, last = name.rpartition(".")
    owner = module.get_submodule(path)
    if last in owner._parameters:  # noqa: SLF001 - assignment would refuse a tensor, and keep no tie
        owner._parameters[last] = nn.Parameter(value, requires_grad=False)  # noqa: SLF001
    else:
        owner._buffers[last] = value  # noqa: SLF001


class BlockStream:
    """Keeps the weights of a model's blocks on disk, and brings a block's in while it runs or is asked for.

    Args:
        blocks: by name.
        read: gives a parameter or persistent buffer of the model by name, on its device and in its dtype.
        names: for each block, the names of what `read` gives for it, within the model.
    """

    def __init__(
        self,
        module: nn.Module,
        blocks: Mapping[str, nn.Module],
        read: Callable[[str], Tensor],
        names: Mapping[str, list[str]],
    ) -> None:
        self._module = module
        self._read = read
        self._names = names
        self._users = dict.fromkeys(blocks, 0)
        for name, block in blocks.items():
            self._drop(name)
            block.register_forward_pre_hook(self._entering(name))
            block.register_forward_hook(self._leaving(name), always_call=True)

    @contextmanager
    def loaded(self, name: str) -> Iterator[None]:
        """Hold a block's weights in memory."""
        self._enter(name)
        try:
            yield
        finally:
            self._leave(name)

    def _entering(self, name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:  # noqa: ANN401 - what torch hands to hooks
            self._enter(name)

        return hook

    def _leaving(self, name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:  # noqa: ANN401 - what torch hands to hooks
            self._leave(name)

        return hook

    def _enter(self, name: str) -> None:
        self._users[name] += 1
        if self._users[name] == 1:
            for tensor in self._names[name]:
                set_tensor(self._module, tensor, self._read(tensor))

    def _leave(self, name: str) -> None:
        self._users[name] -= 1
        if self._users[name] == 0:
            self._drop(name)

    def _drop(self, name: str) -> None:
        state = self._module.state_dict(keep_vars=True)
        for tensor in self._names[name]:
            set_tensor(self._module, tensor, torch.empty_like(state[tensor], device="meta"))


@contextmanager
def holding(streams: list[tuple[BlockStream | None, str | None]]) -> Iterator[None]:
    """Hold several blocks; entries without a stream, or without a block, are in memory already."""
    with ExitStack() as stack:
        for stream, name in streams:
            if stream is not None and name is not None:
                stack.enter_context(stream.loaded(name))
        yield
