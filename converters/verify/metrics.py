"""How far two sets of logits are apart, in numbers; worked out in float64, a few positions at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_ELEMENTS = 1 << 22  # of each side, in float64 at a time
_TOP = 5


@dataclass(frozen=True, slots=True)
class LogitMetrics:
    """One prompt's logits compared.

    Attributes:
        finite: whether every value of both is a number; the others are NaN or worst where it isn't.
        max_abs: largest absolute difference.
        relative: `max_abs` by the range of the source's logits, largest less smallest.
        cosine: of the position where the two directions differ most.
        kl: of the position where it is largest, KL(source || target) in nats.
        top1: share of positions whose most likely token is the same, or as likely.
        top5: share of the five most likely tokens that are the same, or as likely.
        worst_position: where `max_abs` is.
    """

    finite: bool
    max_abs: float
    relative: float
    cosine: float
    kl: float
    top1: float
    top5: float
    worst_position: int

    def values(self) -> Mapping[str, float | int | str]:
        """What a report shows beside `max_abs` and `relative`."""
        return {
            "cosine": self.cosine,
            "kl": self.kl,
            "top1": self.top1,
            "top5": self.top5,
            "worst_position": self.worst_position,
        }


def compare_logits(source: Tensor, target: Tensor, real: Tensor, tie: float = 0.0) -> LogitMetrics:
    """Compare the logits of one prompt.

    Args:
        source: [length, vocab].
        target: [length, vocab].
        real: bool [length], false at padding, which isn't compared; positions that are reported count it.
        tie: two tokens whose logits differ by no more than this share of the range are as likely: which of them comes
            first is then up to rounding, and a short prompt has too few positions for a share to bear it.
    """
    positions = real.nonzero().flatten()
    step = max(1, _ELEMENTS // max(1, source.shape[-1]))
    max_abs, worst, low, high = 0.0, 0, math.inf, -math.inf
    cosine, kl, finite = 1.0, 0.0, True
    gaps: list[Tensor] = []
    for start in range(0, len(positions), step):
        some = positions[start : start + step]
        a, b = source[some].double(), target[some].double()
        bad = ~(a.isfinite().all(-1) & b.isfinite().all(-1))
        if bool(bad.any()):
            return LogitMetrics(
                finite=False, max_abs=math.nan, relative=math.nan, cosine=math.nan, kl=math.nan, top1=0.0, top5=0.0,
                worst_position=int(some[bad][0]),
            )  # fmt: skip
        errors = (a - b).abs().amax(-1)
        if float(errors.max()) > max_abs:
            max_abs, worst = float(errors.max()), int(some[errors.argmax()])
        low, high = min(low, float(a.min())), max(high, float(a.max()))
        cosine = min(cosine, float(torch.nn.functional.cosine_similarity(a, b, dim=-1).min()))
        likely_a, likely_b = a.log_softmax(-1), b.log_softmax(-1)
        kl = max(kl, float((likely_a.exp() * (likely_a - likely_b)).sum(-1).max()))
        best_a, best_b = (x.topk(min(_TOP, x.shape[-1]), dim=-1).indices for x in (a, b))
        # How far below the source's own first (fifth) the target's first (five) are, by the source.
        chosen, own = a.gather(-1, best_b), a.gather(-1, best_a)
        gaps.append(torch.cat([own[:, :1] - chosen[:, :1], (own[:, -1:] - chosen).clamp(min=0)], dim=-1))
    differ = torch.cat(gaps) > tie * (high - low) if gaps else torch.zeros(1, 2)
    top1, top5 = (1 - float(part.double().mean()) for part in (differ[:, :1], differ[:, 1:]))
    relative = max_abs / (high - low) if high > low else (0.0 if max_abs == 0 else math.inf)
    return LogitMetrics(finite, max_abs, relative, cosine, kl, top1, top5, worst)


def relative_error(source: Tensor, target: Tensor) -> tuple[float, float]:
    """The largest absolute difference, and that by the largest value of `source`; infinite where one isn't finite."""
    if source.shape != target.shape or not bool(source.isfinite().all() & target.isfinite().all()):
        return math.inf, math.inf
    if source.numel() == 0:
        return 0.0, 0.0
    error, size = float((source - target).abs().max()), float(source.abs().max())
    return error, error / size if size > 0 else (0.0 if error == 0 else math.inf)
