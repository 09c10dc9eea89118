"""How much memory a conversion will take, told beforehand, and how much it took.

The prediction is for the whole process, as the system counts it (resident size): what Python holds already, what the
engine will import, and the buffers of the schedule. The file cache is not the process's, and isn't counted by either.
"""

from __future__ import annotations

import sys
from pathlib import Path

from msgspec import Struct

from converters.plan import Plan
from converters.schedule import Budget, needs_arrays, peak_memory
from converters.tensor_info import DType

NUMPY_NBYTES = 12_500_000
"""What importing numpy adds (2.4 on x86-64 Linux: 12.3 MB); plain copies do without it."""

ML_DTYPES_NBYTES = 2_600_000
"""What importing ml_dtypes adds on top (0.6: 2.6 MB); only BF16 and the 8-bit floats need it."""

THREAD_NBYTES = 1_000_000
"""What a thread holds beside its job: its stack, its allocator's arena, and buffers that it keeps for the next job."""

_STATUS = Path("/proc/self/status")
_NUMPYS_OWN = (DType.F16, DType.F32, DType.F64)


class MemoryEstimate(Struct, frozen=True, gc=False):
    """Bytes of resident memory.

    Attributes:
        process: what the process holds now: Python, this program, and the plan.
        libraries: what the engine will import for this plan.
        buffers: tensor data in flight at most, and the stacks of the threads that move it.
        reached: the most that the process has held so far; reading a long header can take more than converting.
    """

    process: int
    libraries: int
    buffers: int
    reached: int = 0

    @property
    def peak(self) -> int:
        """The most that the process will hold, in all."""
        return max(self.reached, self.process + self.libraries + self.buffers)


def predicted_peak(plan: Plan, budget: Budget) -> MemoryEstimate:
    """What the process will hold at most when it carries out this plan.

    Raises:
        MemoryBudgetError: the budget is too small for anything.
    """
    buffers = peak_memory(plan, budget) + budget.threads * THREAD_NBYTES
    return MemoryEstimate(resident(), _libraries(plan), buffers, measured_peak())


def resident() -> int:
    """Bytes of memory that the process holds now; where the system doesn't tell, the most that it has held."""
    return _status("VmRSS") or _max_resident()


def measured_peak() -> int:
    """The most bytes of memory that the process has held so far."""
    return _status("VmHWM") or _max_resident()


def _libraries(plan: Plan) -> int:
    if not needs_arrays(plan):
        return 0
    nbytes = 0
    if "numpy" not in sys.modules:
        nbytes += NUMPY_NBYTES
    if "ml_dtypes" not in sys.modules and _computes_beyond_numpy(plan):
        nbytes += ML_DTYPES_NBYTES
    return nbytes


def _computes_beyond_numpy(plan: Plan) -> bool:
    """Whether values are computed with in a floating dtype that numpy doesn't have."""
    computed = {target.info.dtype for target in plan.targets if target.operations or target.generator is not None}
    read = {plan.tensor(move.source).dtype for target in plan.targets if target.operations for move in target.moves}
    for made in plan.made:
        read.update({made.info.dtype, *(plan.sources[number].info.dtype for number in made.inputs)})
    checked = {plan.sources[check.source].info.dtype for check in plan.generated_checks}
    return any(dtype.is_floating and dtype not in _NUMPYS_OWN for dtype in computed | read | checked)


def _status(field: str) -> int:
    """A field of what Linux says of this process, in bytes; 0 where it says nothing."""
    try:
        lines = _STATUS.read_text("ascii", "replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


def _max_resident() -> int:
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024
