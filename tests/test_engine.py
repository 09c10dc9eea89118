"""The engine: checks before writing, failures in any job, threads, and every dtype."""

from __future__ import annotations

import threading
import time

import pytest

from converters import schedule
from converters.engine import Executor, execute, materialize
from converters.errors import CheckpointError, CoverageError, OutputError
from converters.plan import Plan
from converters.schedule import Budget, RangeJob, jobs
from converters.source_checks import check_sources
from converters.tensor_info import DType, TensorInfo
from tests.memory_checkpoint import MemoryReader, MemoryWriter
from tests.planning import infos_of, plan_of

BUDGET = Budget(512_000_000, 3)


def reader_of(shapes: dict[str, tuple[int, ...]], dtype: DType = DType.F32, **data: bytes) -> MemoryReader:
    infos = {info.name: info for info in infos_of(shapes, dtype)}
    found = {name: data.get(name, bytes(i * 7 % 251 for i in range(info.nbytes))) for name, info in infos.items()}
    return MemoryReader(infos, found)


def carried_out(plan: Plan, reader: MemoryReader, budget: Budget = BUDGET) -> dict[str, bytes]:
    check_sources(plan, reader, lambda _: None)
    writer = MemoryWriter(plan.shards)
    execute(plan, reader, writer, budget)
    writer.finish()
    written = {name: bytes(data) for name, data in writer.data.items()}
    assert {
        target.info.name: bytes(materialize(plan, number, reader, budget)) for number, target in enumerate(plan.targets)
    } == written
    return written


@pytest.mark.parametrize("dtype", DType, ids=str)
def test_every_dtype_is_renamed_and_stacked(dtype: DType) -> None:
    body = "rename: {a: b}\nrules:\n  - {from: 'e.{e}', to: w, layout: '... -> e ...'}\n"
    shapes = {"a": (3, 8), "e.0": (8,), "e.1": (8,), "e.2": (8,)}
    reader = reader_of(shapes, dtype)
    found = carried_out(plan_of(body, shapes, dtype=dtype), reader)
    assert found == {"b": reader.data["a"], "w": b"".join(reader.data[f"e.{e}"] for e in range(3))}


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_threads_write_the_same(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "SMALL_PANEL", 256)
    monkeypatch.setattr(schedule, "LARGE_PANEL", 256)
    body = (
        "rules:\n  - {from: 'a.{i}', to: 'b.{i}', layout: i o -> o i}\n"
        "  - {fill: arange, to: c, shape: [3000], dtype: F32}\n"
    )
    shapes = {f"a.{i}": (37, 29) for i in range(5)}
    reader = reader_of(shapes)
    assert carried_out(plan_of(body, shapes), reader, Budget(512_000_000, threads)) == carried_out(
        plan_of(body, shapes), reader, Budget(512_000_000, 1)
    )


def test_progress_tells_every_byte_once() -> None:
    body = (
        "rename: {a: b}\nrules:\n  - {from: c, to: d, layout: i o -> o i}\n"
        "  - {fill: ones, to: e, shape: [9], dtype: F16}\n"
    )
    shapes = {"a": (1000, 300), "c": (30, 40)}
    plan = plan_of(body, shapes)
    seen: list[int] = []
    execute(plan, reader_of(shapes), MemoryWriter(plan.shards), BUDGET, seen.append)
    assert sum(seen) == plan.bytes_written


class Failing(MemoryReader):
    """Fails for one tensor, and counts what is read after that."""

    def __init__(self, reader: MemoryReader, bad: str) -> None:
        super().__init__(reader.tensors, reader.data)
        self.bad = bad
        self.failed = threading.Event()
        self.after = 0

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        if name == self.bad:
            self.failed.set()
            raise CheckpointError("the disk is gone", name)
        self.after += self.failed.is_set()
        time.sleep(0.001)
        super().read_into(name, offset, buffer)


@pytest.mark.parametrize("layout", ["i o -> i o", "i o -> o i"])
@pytest.mark.parametrize("bad", ["a.0", "a.150", "a.299"])
def test_a_failure_to_read_ends_it_quickly(layout: str, bad: str) -> None:
    shapes = {f"a.{i}": (8, 8) for i in range(300)}
    plan = plan_of(f"rules: [{{from: 'a.{{i}}', to: 'b.{{i}}', layout: {layout}}}]", shapes)
    reader = Failing(reader_of(shapes), bad)
    before = threading.active_count()
    with pytest.raises(CheckpointError, match="the disk is gone"):
        execute(plan, reader, MemoryWriter(plan.shards), BUDGET)
    assert reader.after <= 3 * BUDGET.threads + 2
    assert threading.active_count() == before


@pytest.mark.parametrize("error", [OutputError("disk full"), KeyboardInterrupt(), MemoryError()])
def test_a_failure_to_write_ends_it(error: BaseException) -> None:
    shapes = {f"a.{i}": (8, 8) for i in range(50)}
    plan = plan_of("rename: {'a.{i}': 'b.{i}'}", shapes)
    writer = MemoryWriter(plan.shards)
    write = writer.write_from
    finished = []

    def fail(name: str, offset: int, data: memoryview) -> None:
        if name == "b.7":
            raise error
        write(name, offset, data)

    writer.write_from = fail  # type: ignore[method-assign]
    writer.finish_shard = finished.append  # type: ignore[method-assign]
    with pytest.raises(type(error)):
        execute(plan, reader_of(shapes), writer, BUDGET)
    assert finished == []


def test_a_value_that_does_not_fit_is_named() -> None:
    import numpy as np

    plan = plan_of("rename: {a: b}", {"a": (2,)}, cast=DType.F16)
    reader = reader_of({"a": (2,)}, a=np.array([1.0, 1e6], np.float32).tobytes())
    with pytest.raises(CheckpointError, match="a: 1 values don't fit F16: the largest is 1e\\+06"):
        carried_out(plan, reader)


# --- checks ------------------------------------------------------------------------------------------------------

COPY = "rules: [{from: {copy: [a, b]}, to: c}]"


@pytest.mark.parametrize("place", [0, 5, 1 << 20, (1 << 20) + 4, 1_199_999])
def test_copies_must_be_equal(place: int) -> None:
    shapes = {"a": (1_200_000,), "b": (1_200_000,)}
    reader = reader_of(shapes, DType.U8)
    other = bytearray(reader.data["b"])
    other[place] ^= 1
    plan = plan_of(COPY, shapes, dtype=DType.U8)
    check_sources(plan, reader, lambda _: None)
    with pytest.raises(CoverageError) as caught:
        check_sources(plan, reader_of(shapes, DType.U8, b=bytes(other)), lambda _: None)
    assert str(caught.value) == (
        f"s.yaml:5:9: a and b must be equal to become one tensor, but they differ from element {place} on\n"
        "    they were trained apart since they were copied, and the target has no place for both"
    )


def test_the_first_difference_is_told_in_elements() -> None:
    shapes = {"a": (4,), "b": (4,)}
    reader = reader_of(shapes, DType.F64, a=bytes(32), b=bytes(23) + b"\1" + bytes(8))
    with pytest.raises(CoverageError, match="differ from element 2 on"):
        check_sources(plan_of(COPY, shapes, dtype=DType.F64), reader, lambda _: None)


def test_what_is_made_anew_must_hold_what_would_be_made() -> None:
    import numpy as np

    body = "rename: {a: b}\nrules: [{fill: arange, to: n, shape: [70000], dtype: I64}]".replace("to: n", "to: pos")
    shapes = {"b": TensorInfo("b", (2,), DType.F32), "pos": TensorInfo("pos", (70_000,), DType.I64)}
    plan = plan_of(body, shapes, reverse=True)
    numbers = np.arange(70_000)
    reader = MemoryReader(shapes, {"b": bytes(8), "pos": numbers.tobytes()})
    check_sources(plan, reader, lambda _: None)
    numbers[69_999] = 0
    reader = MemoryReader(shapes, {"b": bytes(8), "pos": numbers.tobytes()})
    with pytest.raises(CoverageError) as caught:
        check_sources(plan, reader, lambda _: None)
    assert str(caught.value) == (
        "s.yaml:6:9: pos doesn't hold what the rule fills it with, from element 69999 on\n"
        "    the target has no place for these values; drop the key by name if they don't matter"
    )


class Stored:
    """A file in a store."""

    is_local = False


@pytest.mark.parametrize("files", [{}, {"model.safetensors": Stored()}])
def test_threads_share_a_range_unless_it_comes_from_a_store(files: dict[str, Stored]) -> None:
    shapes = {"a.0": (8, 8)}
    plan = plan_of("rename: {'a.{i}': 'b.{i}'}", shapes)
    reader = reader_of(shapes)
    reader.files = files  # type: ignore[misc,assignment]
    executor = Executor(plan, reader, MemoryWriter(plan.shards), lambda _: None)
    (job,) = jobs(plan, 0, BUDGET)
    assert isinstance(job, RangeJob)
    assert (executor.begin(job) is None) == bool(files)
