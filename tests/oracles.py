"""Model packages that the tests hold conversions against, imported without what their models don't need.

A training package imports cloud clients, dashboards, kernels for other devices and image transforms beside its model.
None of that takes part in a forward pass on a CPU, and some of it has no build for one. So that the package's own
model code can run here, `oracle` imports it with inert stand-ins for such modules: anything can be imported from them,
subclassed and called, and nothing happens. They are gone once the import is done, so that no other package takes them
for the real thing.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# What each package imports on the way to its model and the model doesn't use.
STAND_INS = {
    "timm": ("torchvision",),  # image transforms; there is no CPU build beside torch's
    "torchtune": (  # data sets, tokenizers, quantization, downloads
        "blobfile",
        "datasets",
        "kagglehub",
        "omegaconf",
        "sentencepiece",
        "tiktoken",
        "torchao",
        "torchdata",
        "torchvision",
    ),
    "torchtitan": (  # data sets, dashboards, the command line, quantization; experts, whose kernels need triton
        "datasets",
        "torchao",
        "torchdata",
        "torchtitan.components.metrics",
        "torchtitan.components.quantization",
        "torchtitan.models.moe",
        "tyro",
    ),
    "olmo_core": ("bettermap", "cached_path", "importlib_resources", "pandas"),  # data sets and cloud storage
}


def oracle(module: str) -> Any:
    """Import a module of one of the packages in `STAND_INS`."""
    with _stand_ins(STAND_INS[module.partition(".")[0]]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package's own
        return importlib.import_module(module)


@contextmanager
def _stand_ins(names: Collection[str]) -> Iterator[None]:
    """Inside, these modules and all below them import as stand-ins, installed or not."""
    real = {name: module for name, module in sys.modules.items() if _below(name, names)}
    for name in real:
        del sys.modules[name]
    finder = _Finder(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if _below(name, names)]:
            del sys.modules[name]
        sys.modules.update(real)


def _below(name: str, names: Collection[str]) -> bool:
    return any(name == one or name.startswith(one + ".") for one in names)


class _Finder(MetaPathFinder, Loader):
    """Finds a stand-in for each of `names`, and for every module below it."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        del path, target
        return ModuleSpec(fullname, self, is_package=True) if _below(fullname, self._names) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Module(ModuleType):
    def __getattr__(self, name: str) -> Any:
        return _inert(name)


def _inert(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)  # nobody's protocol, version or documentation
    return _Inert()


class _Inert:
    """What a stand-in has under every name: a base class that adds nothing, a decorator that changes nothing."""

    def __getattr__(self, name: str) -> Any:
        return _inert(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and not kwargs and callable(args[0]) else self

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return ()

    def __instancecheck__(self, instance: object) -> bool:
        return False

    def __getitem__(self, item: object) -> Any:
        return self

    def __or__(self, other: object) -> Any:
        return self

    __ror__ = __or__
