"""What `plan` and `convert` say of a conversion, in lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from converters.commands.plan_data import Example, collapsed, dropped_by_reason, examples
from converters.commands.terminal import bold, cells, counted, dim, listed, width
from converters.convert import Prepared
from converters.memory import MemoryEstimate
from converters.plan import Plan, RuleSummary
from converters.schedule import Budget
from converters.spec import Rule, Spec, Term
from converters.tensor_info import DType, TensorInfo
from converters.text import format_nbytes, printable

_WAYS = {"copied": "copied", "rearranged": "rearranged", "computed": "computed", "generated": "made anew"}
_LISTED = 3


def heading(spec: Spec, dtype: DType | None) -> str:
    """Which spec, which way, and what the user casts to."""
    name = printable(spec.name) + (" (reversed)" if spec.reverse else "")
    cast = f", then cast to {dtype}" if dtype is not None else ""
    return f"{name}: {printable(spec.source.layout)} → {printable(spec.target.layout)}, {spec.exactness}{cast}"


def rule_lines(plan: Plan, spec: Spec) -> Iterator[str]:
    """Each rule: what it came to, its keys, and the shapes of its largest instance; those that are off come last."""
    found = examples(plan)
    on = [number for number, rule in enumerate(plan.rules) if rule.off is None]
    count_width = max((len(f"{plan.rules[number].instances:,}") for number in on), default=1)
    indent = count_width + 5
    for number in on:
        summary, rule = plan.rules[number], spec.rules[number]
        shapes = shapes_text(found[number]) if number in found else ""
        title = f"{summary.instances:>{count_width},} x {summary.kind}"
        yield f"  {title}{dim(_aside(summary, rule))}"
        yield from _key_lines(rule, shapes, indent)
    for number, summary in enumerate(plan.rules):
        if summary.off is not None:
            rule = spec.rules[number]
            yield dim(f"  off {summary.kind}{_aside(summary, rule)}, only when {printable(summary.off)}")
            yield from map(dim, _key_lines(rule, "", indent))


def _aside(summary: RuleSummary, rule: Rule) -> str:
    line = f", line {rule.location.line}" if rule.location else ""
    return f", {summary.exactness}{', optional' if rule.optional else ''}{line}"


def _key_lines(rule: Rule, shapes: str, indent: int) -> Iterator[str]:
    """The keys of a rule on one line if they fit, else one line for each."""
    margin = " " * indent
    sources = _key_texts(rule.sources) or [f"{rule.fill.value if rule.fill else 'nothing'}, made anew"]
    targets = _key_texts(rule.targets) or ["nothing; it is compared with what is made anew"]
    if len(sources) == len(targets) == 1:
        line = f"{margin}{sources[0]} → {targets[0]}"
        if cells(line) + cells(shapes) + 2 <= width():
            yield f"{line}  {dim(shapes)}".rstrip() if shapes else line
            return
    yield from (margin + text for text in sources)
    arrow = margin[:-2] + "→ "
    yield from (f"{margin if number else arrow}{text}" for number, text in enumerate(targets))
    if shapes:
        yield margin + dim(shapes)


def _key_texts(terms: Sequence[Term]) -> list[str]:
    """A text for each key; keys that hold the same tensor are joined by `=`, those that make one up by `+`."""
    texts = []
    for term in terms:
        label = f"{term.label}: " if term.label else ""
        for number, key in enumerate(term.keys):
            joint = "+ " if term.sharing == "inputs" else "= "
            texts.append(f"{joint if number else label}{printable(str(key))}")
    return texts


def shapes_text(example: Example) -> str:
    """The shapes of an instance: `3 x [2560, 2560] → [7680, 2560] F16`."""
    before, after = _shapes(example.sources), _shapes(example.targets)
    types = [" ".join(dict.fromkeys(info.dtype.label for info in side)) for side in (example.sources, example.targets)]
    if not before or not after:
        return f"{before or after} {types[0] or types[1]}"
    if types[0] != types[1]:
        return f"{before} {types[0]} → {after} {types[1]}"
    return f"{before} → {after} {types[1]}" if before != after else f"{after} {types[1]}"


def _shapes(infos: Sequence[TensorInfo]) -> str:
    counts: dict[str, int] = {}
    for info in infos:
        shape = str(list(info.shape))
        counts[shape] = counts.get(shape, 0) + 1
    return ", ".join(shape if count == 1 else f"{count} x {shape}" for shape, count in counts.items())


def total_pairs(prepared: Prepared) -> Iterator[tuple[str, str]]:
    """Label and text: what is read, written and checked."""
    plan = prepared.plan
    files = len(set(prepared.reader.file_of.values()))
    yield (
        "reads",
        f"{counted(len(plan.sources), 'tensor')}, {_size(source_nbytes(plan))}, from {counted(files, 'file')}",
    )
    ways = plan.bytes_by_way()
    shares = ", ".join(f"{_size(ways[way])} {text}" for way, text in _WAYS.items() if ways[way])
    yield (
        "writes",
        f"{counted(len(plan.targets), 'tensor')}, {_size(plan.bytes_written)}" + (f": {shares}" if shares else ""),
    )
    yield "files", files_text(plan)
    yield "checks", checks_text(plan)


def outcome_pairs(prepared: Prepared) -> Iterator[tuple[str, str]]:
    """Label and text: what is dropped, carried along and left behind."""
    for reason, infos in dropped_by_reason(prepared.plan).items():
        names = collapsed(infos)
        yield "drops", f"{counted(len(infos), 'tensor')}: {listed(names, _LISTED)} ({printable(reason)})"
    for reason, infos in dropped_by_reason(prepared.plan, blocks=True).items():
        names = collapsed(infos)
        yield "drops", f"a block of {counted(len(infos), 'tensor')}: {listed(names, _LISTED)} ({printable(reason)})"
    carried = list(prepared.side_files.carried)
    if prepared.plan.config is not None:
        carried.insert(0, f"{prepared.target.config_file} (mapped)")
    yield "carries", listed(carried)
    yield "leaves", listed(prepared.side_files.left)


def files_text(plan: Plan) -> str:
    """The output's files and their sizes."""
    if len(plan.shards) == 1:
        return plan.shards[0].filename
    sizes = [_size(shard.nbytes) for shard in plan.shards]
    shown = ", ".join(sizes) if len(sizes) <= _LISTED else f"{sizes[0]}, ..., {sizes[-1]}"
    return f"{counted(len(plan.shards), 'shard')}: {shown}"


def checks_text(plan: Plan) -> str:
    """What is compared before anything is written."""
    parts = []
    if plan.equality_checks:
        parts.append(f"{counted(len(plan.equality_checks), 'pair')} of tensors must be equal")
    if plan.generated_checks:
        parts.append(f"{counted(len(plan.generated_checks), 'tensor')} must hold what is made anew")
    return f"{' and '.join(parts)}, {_size(plan.bytes_checked)}" if parts else ""


def memory_text(estimate: MemoryEstimate, budget: Budget) -> str:
    """A prediction: the peak, and what it is made of."""
    parts = [f"{_size(estimate.process)} Python and the plan"]
    if estimate.libraries:
        parts.append(f"{_size(estimate.libraries)} numeric libraries")
    parts.append(f"{_size(estimate.buffers)} buffers of {counted(budget.threads, 'thread')}")
    return f"about {_size(estimate.peak)} at the peak: {', '.join(parts)}"


def source_nbytes(plan: Plan) -> int:
    """Bytes of all tensors of the source."""
    return sum(source.info.nbytes for source in plan.sources)


def off_text(plan: Plan) -> str:
    """The rules that are off, by the condition that is false."""
    off: dict[str, int] = {}
    for rule in plan.rules:
        if rule.off is not None:
            off[rule.off] = off.get(rule.off, 0) + 1
    return "; ".join(f"{count} off (only when {printable(why)})" for why, count in off.items())


def _size(nbytes: int) -> str:
    return format_nbytes(nbytes)


def section(title: str, lines: Sequence[str]) -> list[str]:
    """A heading and what stands under it, after an empty line."""
    return ["", bold(title), *lines] if lines else []
