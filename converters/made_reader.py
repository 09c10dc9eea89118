"""SourceReader tensors that an operation makes of others: a part at a time, as if they were stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct

from converters.schedule import MADE_CHUNK
from converters.tensor_info import TensorInfo

if TYPE_CHECKING:
    import numpy as np

    from converters.gather import SourceReader
    from converters.plan import MadeSource, Plan

    Array = np.ndarray[Any, np.dtype[Any]]


class StoredInput(Struct, frozen=True):
    """A tensor that an operation takes; see `TensorInput`."""

    info: TensorInfo
    reader: SourceReader

    def elements(self, start: int, stop: int) -> Array:
        """See `TensorInput.elements`."""
        import numpy as np

        width = max(self.info.dtype.bits, 8) // 8
        data = bytearray((stop - start) * width)
        self.reader.read_into(self.info.name, start * width, memoryview(data))
        return np.frombuffer(data, dtype=f"u{width}")


class MadeReader:
    """Makes one tensor, of tensors that `reader` has."""

    def __init__(self, plan: Plan, made: MadeSource, reader: SourceReader) -> None:
        self.made = made
        self.inputs = [StoredInput(plan.sources[number].info, reader) for number in made.inputs]

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """See `SourceReader`.

        Raises:
            CheckpointError: an input can't be read, or a value has no counterpart.
        """
        del name  # there is only one
        import numpy as np

        width = self.made.info.dtype.bits // 8
        into = np.frombuffer(buffer, dtype=f"u{width}")
        first = offset // width
        for done in range(0, into.size, MADE_CHUNK):
            count = min(MADE_CHUNK, into.size - done)
            part = self.made.operation.make(self.inputs, self.made.reduction, first + done, first + done + count)
            into[done : done + count] = part


def reader_of(plan: Plan, source: int, reader: SourceReader) -> SourceReader:
    """What the source of a move is read from."""
    return MadeReader(plan, plan.made_source(source), reader) if plan.is_made(source) else reader
