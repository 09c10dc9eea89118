"""Runs the modules of two models side by side, each pair on the same input, one block of each in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.func import functional_call

from converters.errors import CheckpointError
from converters.storage.base import CheckpointReader
from converters.verify.hooks import Call, Recording, first_tensor, recording
from converters.verify.metrics import relative_error
from converters.verify.models import SideModel
from converters.verify.module_pairs import Edge, ModulePairs, feature_order
from converters.verify.prompts import PromptBatch
from converters.verify.skeleton import RUN_ERRORS, ModelUnavailableError
from converters.verify.streaming import holding, read_tensor

_ROWS = 4096  # of an embedding at a time


@dataclass(frozen=True, slots=True)
class Outcome:
    """One pair of modules, compared.

    Attributes:
        kind: `weights`: the source's module with what the target holds, on the source's input. `call`: both modules
            on the source's input. `block`: as `call`, and both outputs when each model runs alone.
        order: where the source's module comes in the order of execution.
        error: largest absolute difference on the same input; `relative`: by the output's largest value.
        inherited, total: for a block, the relative difference of its inputs and of its outputs when each model
            runs alone.
    """

    kind: str
    source: str
    target: str
    block: str | None
    order: int
    error: float
    relative: float
    inherited: float | None = None
    total: float | None = None


class ModuleRuns:
    """Both models, the pairing of their modules, and what they did with one prompt."""

    def __init__(
        self, source: SideModel, target: SideModel, target_reader: CheckpointReader, pairing: ModulePairs
    ) -> None:
        self._source = source
        self._target = target
        self._reader = target_reader
        self._pairing = pairing
        self._source_alone = Recording()
        self._target_alone = Recording()
        self.never_run: list[str] = []

    def outcomes(self, batch: PromptBatch) -> Iterator[Outcome]:
        """Run both models once, then each block and what is outside of blocks again; results in no special order.

        Raises:
            ModelUnavailableError: the source's own model doesn't run, so nothing can be said of the target.
        """
        try:
            self._source_alone = self._alone(self._source, batch)
        except RUN_ERRORS as error:
            raise ModelUnavailableError(f"the source's own model fails on the prompt: {error}") from error
        self._target_alone = self._alone(self._target, batch)
        yield from self._unit(None)
        for block in self._source.blocks:
            yield from self._unit(block)

    @staticmethod
    def _alone(side: SideModel, batch: PromptBatch) -> Recording:
        modules = {name: module for name, module in side.module.named_modules() if name}
        holders = {".".join(name.split(".")[:n]) for name in side.blocks for n in range(1, name.count(".") + 1)}
        keep = [name for name in modules if block_of(side, name) in {None, name} and name not in holders]
        with recording(modules, keep) as recorded:
            side.logits(batch.input_ids)
        return recorded

    # --- one block of the source, or (None) what is outside of blocks ------------------------------------------------

    def _unit(self, block: str | None) -> Iterator[Outcome]:
        pairs = list(self._pairs_in(block))
        edges = [edge for edge in self._pairing.edges if block_of(self._source, edge.source) == block]
        target_blocks = sorted({block_of(self._target, target) or "" for _, target in pairs} - {""})
        streams = [(self._source.stream, block), *((self._target.stream, name) for name in target_blocks)]
        with holding(streams):
            ours = self._source_calls(block)
            theirs = dict(self._target_alone.calls) if block is None else {}
            for name in target_blocks:
                theirs |= self._target_calls(name, ours)
            for source, target in pairs:
                yield from self._compare_calls(source, target, ours, theirs)
            for edge in edges:
                yield self._compare_weights(edge, ours)

    def _pairs_in(self, block: str | None) -> Iterator[tuple[str, str]]:
        """The innermost source module that ran, for each target module that ran."""
        for target, sources in self._pairing.pairs.items():
            if target not in self._target_alone.order:
                continue
            ran = [name for name in sources if name in self._source_alone.order]
            fitting = [name for name in ran if _same_kind(self._source, name, self._target, target)] or ran
            if fitting and block_of(self._source, fitting[0]) == block:
                yield fitting[0], target

    def _source_calls(self, block: str | None) -> Mapping[str, list[Call]]:
        if block is None:
            return self._source_alone.calls
        module = self._source.module.get_submodule(block)
        inner = {f"{block}.{name}" if name else block: each for name, each in module.named_modules()}
        with recording(inner, inner) as recorded:
            for call in self._source_alone.calls.get(block, ()):
                call.repeat(module)
        return recorded.calls

    def _target_calls(self, block: str, ours: Mapping[str, list[Call]]) -> dict[str, list[Call]]:
        """What the target's modules are called with when its block gets the source's input: masks, positions."""
        module = self._target.module.get_submodule(block)
        inner = {f"{block}.{name}" if name else block: each for name, each in module.named_modules()}
        counterpart = next((name for name in self._pairing.pairs.get(block, ()) if name in ours), None)
        with recording(inner, inner) as recorded:
            for number, call in enumerate(self._target_alone.calls.get(block, ())):
                forced = ours[counterpart][number].primary if counterpart and number < len(ours[counterpart]) else None
                fits = forced is not None and forced.shape == call.primary.shape
                call.repeat(module, forced if fits else None)
        return recorded.calls

    # --- comparing ---------------------------------------------------------------------------------------------------

    def _compare_calls(
        self, source: str, target: str, ours: Mapping[str, list[Call]], theirs: Mapping[str, list[Call]]
    ) -> Iterator[Outcome]:
        a, b = ours.get(source, []), theirs.get(target, [])
        if not a or len(a) != len(b) or not all(_alike(x.primary, y.primary) for x, y in zip(a, b, strict=True)):
            return
        module = self._target.module.get_submodule(target)
        rows = feature_order(self._pairing.edges, self._source, self._target, (source, target))
        error = relative = 0.0
        for x, y in zip(a, b, strict=True):
            out = y.repeat(module, x.primary)
            expected = x.output if rows is None else x.output[..., rows]
            if out is None or out.shape != expected.shape:
                return
            found = relative_error(expected, out)
            error, relative = max(error, found[0]), max(relative, found[1])
        block = block_of(self._source, source)
        order = self._source_alone.order[source]
        if source != block:
            yield Outcome("call", source, target, block, order, error, relative)
            return
        alone = self._target_alone.calls.get(target, [])
        pairs = list(zip(self._source_alone.calls[source], alone, strict=False))
        inherited = max((relative_error(x.primary, y.primary)[1] for x, y in pairs), default=math.inf)
        total = max((relative_error(x.output, y.output)[1] for x, y in pairs), default=math.inf)
        yield Outcome("block", source, target, block, order, error, relative, inherited, total)

    def _compare_weights(self, edge: Edge, ours: Mapping[str, list[Call]]) -> Outcome:
        """Run the source's module with the target's elements in place of its own."""
        block = block_of(self._source, edge.source)
        runner = edge.source
        while runner and runner not in ours:
            runner = runner.rpartition(".")[0]
        order = self._source_alone.order.get(edge.source, self._source_alone.order.get(runner, 0))
        if not runner:
            self.never_run.append(edge.source)
            return Outcome("weights", edge.source, edge.target, block, order, 0.0, 0.0)
        module = self._source.module.get_submodule(runner)
        changed = {}
        for part in edge.parts:
            made = self._source.module.state_dict()[part.parameter].clone().contiguous()
            try:
                value = read_tensor(self._reader, part.target).to(made.device)
                part.put_back(value, made)
            except (KeyError, CheckpointError, RuntimeError):
                return Outcome("weights", edge.source, edge.target, block, order, math.inf, math.inf)
            changed[part.parameter.removeprefix(f"{runner}.")] = made
        calls = _every_row(module, ours[runner]) if _takes_rows(module, ours[runner]) else ours[runner]
        error = relative = 0.0
        for call in calls:
            args, kwargs = call.arguments(call.primary)
            out = first_tensor(functional_call(module, changed, args, kwargs))
            found = (math.inf, math.inf) if out is None else relative_error(call.output, out)
            error, relative = max(error, found[0]), max(relative, found[1])
        return Outcome("weights", edge.source, edge.target, block, order, error, relative)


def _alike(one: Tensor, two: Tensor) -> bool:
    """Whether what two modules are called with can take each other's place; token ids and a mask can't."""
    return one.shape == two.shape and one.is_floating_point() == two.is_floating_point()


def _takes_rows(module: nn.Module, calls: Sequence[Call]) -> TypeGuard[nn.Embedding]:
    """Whether it is an embedding that can be asked for any row; some work out their rows from a mask."""
    if not isinstance(module, nn.Embedding):
        return False
    try:
        module(torch.zeros(1, dtype=torch.long, device=calls[0].primary.device))
    except RUN_ERRORS:
        return False
    return True


def _every_row(module: nn.Embedding, calls: Sequence[Call]) -> Iterator[Call]:
    """Calls that look up each row of an embedding, since a prompt doesn't."""
    device = calls[0].primary.device
    for start in range(0, module.num_embeddings, _ROWS):
        rows = torch.arange(start, min(start + _ROWS, module.num_embeddings), device=device)
        out = first_tensor(module(rows))
        if isinstance(out, Tensor):
            yield Call((rows,), {}, rows, out)


def block_of(side: SideModel, name: str) -> str | None:
    """The block that a module is, or is in; None outside of blocks."""
    return next((block for block in side.blocks if name == block or name.startswith(f"{block}.")), None)


def _same_kind(source: SideModel, source_name: str, target: SideModel, target_name: str) -> bool:
    """Whether both look rows up, or neither: tied, an embedding has the same parameters as the last projection."""
    modules = source.module.get_submodule(source_name), target.module.get_submodule(target_name)
    first, second = (isinstance(module, nn.Embedding) for module in modules)
    return first == second
