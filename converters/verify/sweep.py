"""One sweep over a plan: its jobs run against a comparison in place of a writer, as the engine would run them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from converters.copying import RangeCopy, run_jobs
from converters.engine import Executor, Progress
from converters.errors import Problem, WeightmapError
from converters.plan import Plan
from converters.schedule import Budget, Job, RangeJob, jobs
from converters.storage.base import CheckpointReader
from converters.text import printable
from converters.verify.compare import MEMORY_PER_THREAD, Comparison, Difference, Pair
from converters.verify.contents import Contents
from converters.verify.names import layer_of
from converters.verify.pairing import Pairing
from converters.verify.report import Finding
from converters.verify.settled import Equal, Settled

if TYPE_CHECKING:
    from converters.verify.diagnosis import Diagnosis

_MISTAKE = "this is a mistake in weightmap, not in your checkpoint; please report it"

MAX_DIAGNOSED = 40
"""Differing tensors that are looked into; a conversion that got more wrong got them wrong alike."""


class Sweep(Struct, frozen=True):
    """What a sweep found.

    Attributes:
        differences: by the name of the made tensor; those within what is allowed are among them.
        failed: tensors that couldn't be made or read, with the reason.
        nbytes: bytes that were compared.
        settled: stretches that were copied plainly and are equal on both sides.
    """

    differences: dict[str, Difference]
    failed: dict[str, Problem]
    nbytes: int
    settled: Settled


def sweep(
    plan: Plan,
    reader: CheckpointReader,
    stored: CheckpointReader,
    pairing: Pairing,
    budget: Budget,
    progress: Progress,
    *,
    made_is_expected: bool,
    settled: Settled | None = None,
) -> Sweep:
    """Make every paired tensor of a plan and compare it.

    Args:
        plan: what makes the tensors.
        reader: what they are made of.
        stored: what they are compared with.
        pairing: which is compared with which.
        budget: bytes and threads for all of it.
        progress: called with the number of bytes just compared, from several threads.
        made_is_expected: whether the made side is right, and the stored one is being verified; else the other way.
        settled: what a sweep in the other direction has found to be equal, which is not read again.

    Raises:
        MemoryBudgetError: the budget is too small.
    """
    comparison = Comparison(stored, pairing.pairs, made_is_expected=made_is_expected)
    executor = _Guarded(plan, reader, comparison, progress, settled)
    share = working_budget(budget)
    numbers = [number for number, target in enumerate(plan.targets) if target.info.name in pairing.pairs]
    with ThreadPoolExecutor(budget.threads, thread_name_prefix="weightmap") as pool:
        try:
            run_jobs(pool, executor, (job for number in numbers for job in jobs(plan, number, share)), budget.threads)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    for number in numbers:
        info = plan.targets[number].info
        if info.name not in executor.failed and (done := comparison.compared.get(info.name, 0)) != info.nbytes:
            executor.failed[info.name] = Problem(f"{done:,} of its {info.nbytes:,} bytes were compared", None, _MISTAKE)
    wrong = comparison.found.keys() | executor.failed.keys()
    equal = Settled.by(one for one in executor.copied if one.made not in wrong)
    return Sweep(comparison.found, executor.failed, sum(comparison.compared.values()), equal)


def working_budget(budget: Budget) -> Budget:
    """What is left for the jobs beside what comparing takes."""
    return replace(budget, max_memory=budget.max_memory - budget.threads * MEMORY_PER_THREAD)


class _Guarded(Executor):
    """Goes on after a tensor that can't be made or read, and keeps the reason; leaves out what is settled."""

    def __init__(
        self,
        plan: Plan,
        reader: CheckpointReader,
        comparison: Comparison,
        progress: Progress,
        settled: Settled | None,
    ) -> None:
        super().__init__(plan, reader, comparison, progress)
        self.comparison = comparison
        self.settled = settled
        self.failed: dict[str, Problem] = {}
        self.copied: list[Equal] = []

    def begin(self, job: RangeJob) -> list[RangeCopy] | None:
        """Each range is read by one thread: what is to be read, and whether that fails, is for `run` to say."""
        del job
        return None

    def run(self, job: Job) -> None:
        name = self.plan.targets[job.target].info.name
        if name in self.failed:
            return
        copied = self._copied(job)
        try:
            if copied is None:
                super().run(job)
            elif self.settled is not None and self.settled.covers(copied):
                self.comparison.count(name, copied.nbytes)
                self.progress(copied.nbytes)
            else:
                self.comparison.compare_copied(self.reader, copied, self.progress)
                self.copied.append(copied)
        except WeightmapError as error:
            self.failed[name] = error.problems[0]

    def _copied(self, job: Job) -> Equal | None:
        """What holds if a job finds no difference; None unless it compares the bytes of two stored tensors."""
        if not isinstance(job, RangeJob) or self.plan.is_made(job.source):
            return None
        pair = self.comparison.pairs[self.plan.targets[job.target].info.name]
        # Rounded alike, or stored under another name, they are not what the job's own names say.
        plain = pair.via is None and pair.made.dtype is pair.stored.dtype and pair.made.name == pair.stored.name
        return Equal.of(self.plan, job) if plain else None


class Explained(Struct, frozen=True):
    """A difference as a finding, and what is known of its cause."""

    finding: Finding
    diagnosis: Diagnosis | None


def explain(
    kind: str,
    found: Sweep,
    pairs: dict[str, Pair],
    rule_of: Callable[[str], str],
    expected: Contents,
    got: Contents,
    *,
    made_is_expected: bool,
) -> list[Explained]:
    """Turn the differences of a sweep that are beyond what is allowed into findings, the first of them with a cause."""
    explained: list[Explained] = []
    names = [name for name in pairs if name in found.differences and found.differences[name].beyond]
    if not names and not found.failed:
        return explained
    from converters.verify.diagnosis import Diagnoser  # only now: it is much to import for nothing

    diagnoser = Diagnoser(expected, got)
    for count, name in enumerate(names):
        pair, difference = pairs[name], found.differences[name]
        expected_name, found_name = (pair.made.name, pair.stored.name)[:: 1 if made_is_expected else -1]
        alike = pair.made.dtype is pair.stored.dtype and pair.via is None
        diagnosis = (
            diagnoser.diagnose(expected_name, found_name, difference) if alike and count < MAX_DIAGNOSED else None
        )
        where = pair.stored.name
        explained.append(
            Explained(
                Finding(
                    kind,
                    _text(pair, difference),
                    where,
                    _value(difference.expected_first),
                    _value(difference.found_first),
                    rule=rule_of(name),
                    layer=layer_of(where),
                    diagnosis=diagnosis.text if diagnosis else None,
                    values=_values(pair, difference),
                ),
                diagnosis,
            )
        )
    for name, problem in found.failed.items():
        what = f"it couldn't be compared: {problem.what}"
        where = pairs[name].stored.name
        explained.append(
            Explained(
                Finding("not-compared", what, where, rule=rule_of(name), layer=layer_of(where), hint=problem.hint), None
            )
        )
    return explained


def within_allowed(found: Sweep) -> int:
    """The number of elements that differ, but not by more than is allowed."""
    return sum(difference.differing - difference.beyond for difference in found.differences.values())


def index_text(pair: Pair, position: int) -> str:
    """A position in the flattened tensor as an index, such as `[3, 7]`."""
    bits = pair.stored.dtype.bits
    if bits % 8:
        position = position * 8 // bits  # these dtypes are compared byte by byte
    index: list[int] = []
    for size in reversed(pair.stored.shape):
        position, coordinate = divmod(position, size)
        index.insert(0, coordinate)
    return str(index)


def _text(pair: Pair, difference: Difference) -> str:
    size = (pair.stored.nbytes if pair.stored.dtype.bits % 8 else pair.stored.size) or 1
    unit = "bytes" if pair.stored.dtype.bits % 8 else "elements"
    rounded = f" once rounded to {pair.via}" if pair.via else ""
    beyond = f" by more than {pair.ulps} ULP" if pair.ulps else ""
    first, last = difference.first or 0, difference.last or 0
    span = (
        f"at {index_text(pair, first)}"
        if first == last
        else f"from {index_text(pair, first)} to {index_text(pair, last)}"
    )
    nans = f", {difference.nans:,} of them NaN" if difference.nans else ""
    return f"{difference.beyond:,} of {size:,} {unit} differ{beyond}{rounded}, {span}{nans}"


def _values(pair: Pair, difference: Difference) -> dict[str, float | int | str]:
    values: dict[str, float | int | str] = {
        "differing": difference.beyond,
        "elements": pair.stored.size,
        "first_index": index_text(pair, difference.first or 0),
        "max_abs": difference.max_abs,
        "nans": difference.nans,
    }
    if difference.max_ulps is not None:
        values |= {"max_ulps": difference.max_ulps, "ulps_of": pair.dtype.label}
    return values


def _value(value: float | None) -> str | None:
    return None if value is None else repr(value) if isinstance(value, int) else f"{value:.9g}"


def describe_names(names: list[str], limit: int = 3) -> str:
    """The first few names and how many more there are, safe to print."""
    shown = ", ".join(printable(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
