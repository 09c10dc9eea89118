"""How far apart two correct models may be, by dtype and device: one table, with the reasons for its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Final

import torch

from converters.errors import WeightmapError
from converters.verify.metrics import LogitMetrics
from converters.verify.report import Gate

COSINE: Final = "cosine distance"
KL: Final = "KL"


@dataclass(frozen=True, slots=True)
class Tolerances:
    """Bounds for what is measured.

    Attributes:
        relative: largest difference of logits, by the range of the source's logits.
        max_abs: largest difference of logits; a coarse bound, since it depends on the scale of the logits.
        cosine: how far the cosine may be from one, at any position.
        kl: the largest KL(source || target) in nats, at any position.
        top1: the share of positions whose most likely token may differ.
        top5: the share of the five most likely tokens that may differ.
        module: largest difference of a module's output on the same input, by the output's largest value.
    """

    relative: float
    max_abs: float
    cosine: float
    kl: float
    top1: float
    top5: float
    module: float


# Measured on correct conversions, weights drawn at random (docs/mutations.md has the current numbers):
#
# float32   20 seeds of seven small models, stored in float32, float16 and bfloat16, and cast from float32 to those two.
#           Relative 6e-6 at most (a mixture of experts, which the sides sum in another order), max abs 9e-5, cosine
#           1.3e-10, KL 4e-10, modules 1.3e-6; 32 layers of 2560 features stay below that. Bounds are five to ten times
#           these, and the square of that for cosine and KL, which grow with the square. The mildest mutant, one matrix
#           stored in half precision, has 6e-5. Of the agreement that is left after ties, one in 200 may be lost.
# 16 bits   3 seeds of the same models, computed in 16 bits on a CPU. float16: relative 0.014, cosine 1e-3, KL 1.3e-3,
#           top-1 1.4 %, top-5 1 %, modules 0.007. bfloat16: 0.07, 0.02, 0.06, 8 %, 6 %, 0.06. Bounds are about four
#           times these. A mixture of experts goes beyond: where two experts are nearly even, rounding picks another.
#           No bound could tell that from a mistake; compute those in float32, which is the default.
# cuda      The same: it is IEEE float32 there as well, with sums in another order. A reference made on one kind of
#           device is compared on the other with these bounds.
TABLE: Final[Mapping[tuple[torch.dtype, str], Tolerances]] = {
    (torch.float32, "cpu"): Tolerances(
        relative=3e-5, max_abs=1e-3, cosine=5e-9, kl=2e-8, top1=0.005, top5=0.005, module=1e-5
    ),
    (torch.float32, "cuda"): Tolerances(
        relative=3e-5, max_abs=1e-3, cosine=5e-9, kl=2e-8, top1=0.005, top5=0.005, module=1e-5
    ),
    (torch.float16, "cpu"): Tolerances(
        relative=0.05, max_abs=1.0, cosine=5e-3, kl=1e-2, top1=0.05, top5=0.05, module=0.03
    ),
    (torch.float16, "cuda"): Tolerances(
        relative=0.05, max_abs=1.0, cosine=5e-3, kl=1e-2, top1=0.05, top5=0.05, module=0.03
    ),
    (torch.bfloat16, "cpu"): Tolerances(
        relative=0.25, max_abs=5.0, cosine=0.2, kl=0.5, top1=0.25, top5=0.2, module=0.25
    ),
    (torch.bfloat16, "cuda"): Tolerances(
        relative=0.25, max_abs=5.0, cosine=0.2, kl=0.5, top1=0.25, top5=0.2, module=0.25
    ),
}


def tolerances_for(dtype: torch.dtype, device: str, changes: Mapping[str, float]) -> tuple[Tolerances, str]:
    """The bounds, and what a report says of where they are from.

    Args:
        device: `cpu` or `cuda`.
        dtype: what is computed in. What weights are stored in doesn't matter: both sides have the same, rounded alike.
        changes: bounds that the user sets, by name.

    Raises:
        WeightmapError: `changes` names no bound.
    """
    row = TABLE[dtype if (dtype, "cpu") in TABLE else torch.float32, "cuda" if device == "cuda" else "cpu"]
    known = asdict(row)
    if unknown := sorted(set(changes) - set(known)):
        raise WeightmapError(f"there is no tolerance {unknown[0]!r}; there are: {', '.join(known)}")
    said = f"tolerances for {str(dtype).removeprefix('torch.')} on {device}"
    return replace(row, **changes), said + (f"; {', '.join(sorted(changes))} as given" if changes else "")


def logit_gates(found: Mapping[str, LogitMetrics], tolerances: Tolerances) -> tuple[Gate, ...]:
    """Every gate of the logits, each with the prompt that came out worst."""

    def worst(name: str, bound: float, bad: Mapping[str, float], *, at_least: bool = False) -> Gate:
        # NaN is the worst there is, wherever it stands.
        where = max(bad, key=lambda each: (bad[each] != bad[each], bad[each]))
        measured = 1 - bad[where] if at_least else bad[where]
        return Gate(name, measured, 1 - bound if at_least else bound, at_least, where)

    return (
        worst("relative to the logit range", tolerances.relative, {name: m.relative for name, m in found.items()}),
        worst("max abs", tolerances.max_abs, {name: m.max_abs for name, m in found.items()}),
        worst(COSINE, tolerances.cosine, {name: 1 - m.cosine for name, m in found.items()}),
        worst(KL, tolerances.kl, {name: m.kl for name, m in found.items()}),
        worst("top-1 agreement", tolerances.top1, {name: 1 - m.top1 for name, m in found.items()}, at_least=True),
        worst("top-5 agreement", tolerances.top5, {name: 1 - m.top5 for name, m in found.items()}, at_least=True),
    )


def deciding(gates: tuple[Gate, ...]) -> Gate:
    """The gate that decided: the one that is furthest over its bound, or nearest to it where all are kept."""

    def used(gate: Gate) -> float:
        if gate.measured != gate.measured:  # NaN
            return float("inf")
        part, whole = (1 - gate.measured, 1 - gate.tolerance) if gate.at_least else (gate.measured, gate.tolerance)
        ratio = part / whole if whole > 0 else float("inf") if part > 0 else 0.0
        # These two grow with the square of the error, the others with the error itself.
        return max(0.0, ratio) ** 0.5 if gate.name in {COSINE, KL} else ratio

    return max(gates, key=used)
