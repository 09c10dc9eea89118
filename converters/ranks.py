"""What ranks of torch.distributed do together: on all of them or on the first, and a failure is raised on every one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from converters.errors import OutputError, WeightmapError
from converters.text import printable

T = TypeVar("T")


def everywhere(action: Callable[[], T]) -> T:
    """Do it on every rank; what fails on one is raised on all of them, so that none waits for another."""
    result, failure = _attempt(action)
    failures = [failure]
    if world() > 1:
        import torch.distributed as dist

        failures = [None] * world()
        dist.all_gather_object(failures, failure)
    for found in (failure, *failures):
        if found is not None:
            raise found
    return cast("T", result)


def on_first(action: Callable[[], T]) -> T:
    """Do it on the first rank; its result, or what failed, is known on all of them."""
    told = [_attempt(action) if rank() == 0 else (None, None)]
    if world() > 1:
        import torch.distributed as dist

        dist.broadcast_object_list(told, src=0)
    result, failure = told[0]
    if failure is not None:
        raise failure
    return cast("T", result)


def _attempt(action: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """The result, or what failed, in a form that another rank can be told."""
    try:
        return action(), None
    except WeightmapError as error:
        return None, error
    except Exception as error:  # noqa: BLE001 - whatever it is, the other ranks must hear of it
        return None, OutputError(f"{type(error).__name__}: {printable(str(error))[:500]}")


def rank() -> int:
    """This process's number; 0 where there are no others."""
    import torch.distributed as dist

    return dist.get_rank() if world() > 1 else 0


def world() -> int:
    """How many processes work together."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
