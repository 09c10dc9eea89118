"""The report's pictures: drawn by matplotlib as SVG, which goes into the page as it is and takes the page's colours."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from converters.text import printable
from converters.verify.report import Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

MAX_PARTS: Final = 60
"""Rows of a heat map beyond which those with the smallest errors are left out."""

MAX_LAYERS: Final = 400
"""Columns of a heat map; more would be too fine to see."""

# Colours that stand for the page's own: each is replaced by a CSS variable, so that one picture serves light and dark.
_INK, _FAINT, _EXACT, _BROKEN, _LINE = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
_VARIABLES: Final[Mapping[str, str]] = {
    _INK: "var(--ink)",
    _FAINT: "var(--faint)",
    _EXACT: "var(--exact)",
    _BROKEN: "var(--fail)",
    _LINE: "var(--line)",
}
_OUTSIDE: Final = "*"
_LONGEST_LABEL: Final = 60
_SHADES: Final = 32


def heat_map(measurements: Sequence[Measurement], salt: str) -> str | None:
    """Error by layer (across) and part (down), on a logarithmic scale; None where no measurement has a layer.

    Args:
        measurements: those of one level.
        salt: differs from picture to picture, and keeps their identifiers apart.
    """
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, LogNorm
    from matplotlib.ticker import NullFormatter

    cells = _cells(measurements)
    layers = sorted({layer for layer, _ in cells if layer is not None})[:MAX_LAYERS]
    if not layers:
        return None
    parts = _parts(cells)
    columns: list[int | None] = [*layers, *([None] if any(layer is None for layer, _ in cells) else [])]
    with _style(salt):
        room = 1.8 + 0.08 * max(len(_label(part)) for part in parts)  # inches, for the names and the scale
        figure, axes = _figure(room + min(9.0, max(2.0, 0.24 * len(columns))), 1.4 + 0.24 * len(parts))
        exact = [[_flag(cells.get((layer, part)), zero=True) for layer in columns] for part in parts]
        broken = [[_flag(cells.get((layer, part)), zero=False) for layer in columns] for part in parts]
        values = [[_finite(cells.get((layer, part))) for layer in columns] for part in parts]
        for flags, colour in ((exact, _EXACT), (broken, _BROKEN)):
            if any(not math.isnan(flag) for row in flags for flag in row):
                only = ListedColormap([colour])
                axes.pcolormesh(flags, cmap=only, vmin=0, vmax=2, edgecolors=_FAINT, linewidth=0.5)
        positive = [value for row in values for value in row if not math.isnan(value)]
        if positive:
            low, high = min(positive), max(positive)
            norm = LogNorm(min(low / 1.5, high / 100), high * 1.5)
            shades = colormaps["viridis"].resampled(_SHADES)
            mesh = axes.pcolormesh(values, cmap=shades, norm=norm, edgecolors=_FAINT, linewidth=0.5)
            bar = figure.colorbar(mesh, ax=axes, label="relative error", pad=0.02, fraction=0.05, format=_plain())
            bar.ax.yaxis.set_minor_formatter(NullFormatter())
            if bar.solids is not None:
                bar.solids.set_rasterized(False)  # an image would be a file of its own, inside the page
        axes.set_yticks([row + 0.5 for row in range(len(parts))], [_label(part) for part in parts])
        step = max(1, len(columns) // 40)
        ticks = [column for column in range(len(columns)) if column % step == 0 or columns[column] is None]
        texts = [_OUTSIDE if columns[tick] is None else str(columns[tick]) for tick in ticks]
        axes.set_xticks([tick + 0.5 for tick in ticks], texts)
        axes.invert_yaxis()
        axes.set_xlabel(f"layer ({_OUTSIDE}: outside the layers)" if None in columns else "layer")
        return _svg(figure)


def depth_plot(measurements: Sequence[Measurement], salt: str) -> str | None:
    """Error against depth: the worst part of each layer and, where blocks were measured, what each block adds.

    None where fewer than two layers were measured, or no error was found in any.
    """
    from matplotlib.ticker import MaxNLocator, NullFormatter

    by_kind: dict[str, dict[int, float]] = {}
    for one in measurements:
        if one.layer is None:
            continue
        for label, value in _curves(one):
            curve = by_kind.setdefault(label, {})
            curve[one.layer] = max(curve.get(one.layer, 0.0), value)
    layers = {layer for curve in by_kind.values() for layer in curve}
    positive = [value for curve in by_kind.values() for value in curve.values() if value > 0]
    if len(layers) < 2 or not positive:  # noqa: PLR2004 - a single point is no line
        return None
    with _style(salt):
        figure, axes = _figure(8.0, 2.8)
        for (label, curve), style in zip(by_kind.items(), _styles(), strict=False):
            points = sorted(curve.items())
            colour, dash, mark = style
            axes.plot([layer for layer, _ in points], [value for _, value in points], color=colour, linestyle=dash,
                      marker=mark, markersize=3.5, linewidth=1.4, label=label)  # fmt: skip
        bounds = {one.tolerance for one in measurements if one.tolerance is not None}
        if len(bounds) == 1:
            axes.axhline(min(bounds), color=_BROKEN, linestyle=":", linewidth=1.2, label="bound")
        axes.set_yscale("symlog", linthresh=min(positive))
        axes.set_ylim(0, 2 * max([*positive, *(bounds if len(bounds) == 1 else ())]))
        axes.yaxis.set_major_formatter(_plain())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("layer")
        axes.set_ylabel("relative error")
        axes.grid(visible=True, color=_FAINT, linewidth=0.5)
        axes.legend(frameon=False, fontsize=8)
        return _svg(figure)


def _curves(one: Measurement) -> list[tuple[str, float]]:
    if one.kind != "block":
        return [(f"worst {one.kind}", _error(one))]
    found = (("block, in all", one.relative), ("block, inherited", one.inherited), ("block, added", one.added))
    return [(label, value if math.isfinite(value) else 0.0) for label, value in found if value is not None]


def _styles() -> list[tuple[str, str, str]]:
    """Colours that tell apart in light and dark and to the colour-blind (Okabe and Ito 2008), with dashes and marks."""
    return [
        (_LINE, "-", "o"),
        ("#e69f00", "-", "s"),
        ("#56b4e9", "--", "^"),
        ("#cc79a7", "-.", "D"),
        ("#009e73", "--", "v"),
    ]


def _error(one: Measurement) -> float:
    value = one.relative if one.relative is not None else one.max_abs
    return value if value is not None and math.isfinite(value) else 0.0


def _cells(measurements: Sequence[Measurement]) -> dict[tuple[int | None, str], float]:
    """The largest error for each layer and part; NaN counts as infinite."""
    cells: dict[tuple[int | None, str], float] = {}
    for one in measurements:
        value = one.relative if one.relative is not None else one.max_abs
        if value is None or one.part is None:
            continue
        key = one.layer, one.part
        cells[key] = max(cells.get(key, 0.0), math.inf if math.isnan(value) else value)
    return cells


def _parts(cells: Mapping[tuple[int | None, str], float]) -> list[str]:
    """The parts in order of their first appearance, the worst of them where there are too many."""
    worst: dict[str, float] = {}
    for (_, part), value in cells.items():
        worst[part] = max(worst.get(part, 0.0), value)
    kept = set(sorted(worst, key=lambda part: -worst[part])[:MAX_PARTS])
    return [part for part in worst if part in kept]


def _finite(value: float | None) -> float:
    return value if value is not None and 0 < value < math.inf else math.nan


def _flag(value: float | None, *, zero: bool) -> float:
    return 1.0 if value is not None and (value == 0 if zero else value == math.inf) else math.nan


def _label(name: str) -> str:
    text = printable(name)
    return text if len(text) <= _LONGEST_LABEL else f"…{text[1 - _LONGEST_LABEL :]}"


def _plain() -> FuncFormatter:
    """Numbers as `1e-05`: matplotlib's own are formulas, which would need their fonts."""
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: f"{value:g}")


def _style(salt: str):  # type: ignore[no-untyped-def]  # noqa: ANN202 - matplotlib's own context manager
    import matplotlib as mpl

    return mpl.rc_context({
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "text.parse_math": False,
        "font.family": "sans-serif",
        "font.size": 9,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _FAINT,
        "xtick.color": _INK,
        "ytick.color": _INK,
    })  # fmt: skip


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of its own, without the global state of pyplot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    return figure, axes


def _svg(figure: Figure) -> str:
    """The picture as an element of a page: no declaration, no metadata, colours as variables."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    # The page scales it; matplotlib's sizes in points would overflow a narrow window.
    return re.sub(
        r'(<svg[^>]*?) width="([0-9.]+)pt" height="[0-9.]+pt"', r'\1 style="max-width:\2pt;width:100%"', text, count=1
    )
