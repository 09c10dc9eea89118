"""Kinds of wrong conversion, as bugs and accidents make them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tests.mutations import changes
from tests.mutations.cases import Case
from tests.mutations.changes import Change


@dataclass(frozen=True, slots=True)
class Mutant:
    """One kind.

    Attributes:
        what: what is wrong, in a few words.
        level: the cheapest level that should catch it.
        change: changes tensors in memory; None for what only touches files.
        damage: changes the directory itself, after `change`.
        needs: roles that the architecture must have.
        local: whether it is at one place, so that the verifier must name its layer and module.
        equivalent: why it can't change the function; None where it does.
        fits: whether an architecture can have it at all.
    """

    name: str
    what: str
    level: str
    change: Change | None = None
    damage: Change | None = None
    needs: tuple[str, ...] = ()
    local: bool = False
    equivalent: str | None = None
    fits: Callable[[Case], bool] = lambda _: True

    def applies(self, case: Case) -> bool:
        """Whether an architecture has what it needs."""
        about_scales = any(role.endswith("_scale") for role in self.needs)
        # The quantized model is there for its scales; the rest is Llama once more.
        if ("q_scale" in case.roles) != about_scales:
            return False
        return all(role in case.roles for role in self.needs) and self.fits(case)


def _fused(case: Case) -> bool:
    return case.roles["q"][0] == case.roles["k"][0]


def _grouped(case: Case) -> bool:
    return case.heads != case.kv_heads


def _square_o(case: Case) -> bool:
    return case.heads * case.head_dim == 48  # the width of these models


PERMUTED_FFN = "the sum over the hidden features of the feed-forward runs in another order, with the same terms"
PERMUTED_HEADS = "the sum over heads runs in another order, with the same terms"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "q and k swapped",
        "in one layer",
        "roundtrip",
        changes.roles_swapped("q", "k"),
        local=True,
        needs=("q", "k"),
        fits=lambda case: not _grouped(case),
    ),
    Mutant(
        "k and v swapped", "in one layer", "roundtrip", changes.roles_swapped("k", "v"), local=True, needs=("k", "v")
    ),
    Mutant(
        "RoPE permute missing",
        "q and k keep the other side's order of features",
        "roundtrip",
        changes.rope_both(back=True),
        fits=_grouped,
    ),
    Mutant(
        "RoPE permute doubled",
        "q and k are permuted once more",
        "roundtrip",
        changes.rope_both(back=False),
        fits=lambda case: "positions" not in case.roles or "pos_encoder" in case.roles["positions"][0],
    ),
    Mutant(
        "k permuted with q's head count",
        "under grouped-query attention",
        "roundtrip",
        changes.k_permuted_with_query_heads,
        fits=lambda case: _grouped(case) and case.head_dim * case.kv_heads % (2 * case.heads) == 0,
    ),
    Mutant(
        "scales not reordered with their rows",
        "of q, in one layer",
        "roundtrip",
        changes.scales_left,
        needs=("q_scale",),
        local=True,
    ),
    Mutant(
        "integers not reordered with their scales",
        "of k, in one layer",
        "roundtrip",
        changes.integers_left,
        needs=("k_scale",),
        local=True,
    ),
    Mutant(
        "interleaved fused axis read as contiguous",
        "q, k and v of each head side by side",
        "roundtrip",
        changes.interleaved,
        fits=lambda case: _fused(case) and not _grouped(case),
    ),
    Mutant(
        "fused axis cut into equal parts",
        "where k and v are smaller than q",
        "roundtrip",
        changes.equal_chunks,
        fits=lambda case: _fused(case) and _grouped(case),
    ),
    Mutant("heads of q reversed", "in one layer", "roundtrip", changes.heads_reversed, local=True),
    Mutant("columns of o reversed by head", "in one layer", "roundtrip", changes.o_columns_reversed, local=True),
    Mutant(
        "q scaled twice", "the attention's scale folded into q, and applied again", "roundtrip", changes.q_scaled_twice
    ),
    Mutant(
        "square matrix transposed",
        "the output projection of one layer",
        "roundtrip",
        changes.at("o", 1, lambda x: x.T.clone()),
        local=True,
        fits=_square_o,
    ),
    Mutant(
        "layers shifted by one",
        "each layer holds the next one's weights",
        "roundtrip",
        changes.layers_moved(lambda layer, count: (layer + 1) % count),
    ),
    Mutant(
        "two layers swapped",
        "the first and the last",
        "roundtrip",
        changes.layers_moved(lambda layer, count: count - 1 - layer),
    ),
    Mutant(
        "a layer twice",
        "the last layer holds the one before it",
        "roundtrip",
        changes.layers_moved(lambda layer, count: min(layer, count - 2)),
    ),
    Mutant(
        "gate and up swapped",
        "in one layer, or in one expert",
        "roundtrip",
        changes.roles_swapped("gate", "up"),
        local=True,
        needs=("gate", "up"),
    ),
    Mutant(
        "experts permuted", "in one layer, without the router", "roundtrip", changes.experts_permuted, needs=("router",)
    ),
    Mutant(
        "norm weight plus one twice",
        "in one layer",
        "roundtrip",
        changes.at("norm_attention", 1, lambda x: x + 1),
        local=True,
    ),
    Mutant(
        "norm weight plus one missing", "in every layer", "roundtrip", changes.everywhere("norm_mlp", lambda x: x - 1)
    ),
    Mutant("final norm from another norm", "", "roundtrip", changes.final_norm_from_another, local=True),
    Mutant(
        "norms swapped",
        "the attention's and the feed-forward's",
        "roundtrip",
        changes.roles_swapped("norm_attention", "norm_mlp"),
        fits=lambda case: not case.spec.startswith("phi2"),
        local=True,
    ),
    Mutant(
        "bias dropped to zero",
        "of q in one layer",
        "roundtrip",
        changes.at("q_bias", 1, torch.zeros_like),
        local=True,
        needs=("q_bias",),
    ),
    Mutant(
        "bias of the feed-forward dropped",
        "in one layer",
        "roundtrip",
        changes.at("down_bias", 2, torch.zeros_like),
        local=True,
        needs=("down_bias",),
    ),
    Mutant(
        "one row of the embedding off by one",
        "a token has its neighbour's row",
        "roundtrip",
        changes.at("embed", 0, changes.row_from_its_neighbour),
        local=True,
        fits=lambda case: case.name != "GPT-2 → nanoGPT",
    ),
    Mutant(
        "embedding shifted by one row",
        "",
        "roundtrip",
        changes.at("embed", 0, lambda x: x.roll(1, 0)),
        local=True,
        fits=lambda case: case.name != "GPT-2 → nanoGPT",
    ),
    Mutant(
        "head shifted by one row",
        "",
        "roundtrip",
        changes.at("head", 0, lambda x: x.roll(1, 0)),
        local=True,
        fits=lambda case: not case.tied,
    ),
    Mutant(
        "positions shifted by one",
        "the learned table",
        "roundtrip",
        changes.at("positions", 0, lambda x: x.roll(1, 0)),
        needs=("positions",),
        local=True,
        fits=lambda case: "wpe" in case.roles["positions"][0],
    ),
    Mutant(
        "last position lost",
        "one row of the learned table is zero",
        "roundtrip",
        changes.at("positions", 0, lambda x: torch.cat([x[:-1], torch.zeros_like(x[-1:])])),
        needs=("positions",),
        local=True,
        fits=lambda case: "wpe" in case.roles["positions"][0],
    ),
    Mutant(
        "tied head untied and stale",
        "it moved on a little",
        "roundtrip",
        changes.stale_head,
        local=True,
        fits=lambda case: case.tied,
    ),
    Mutant(
        "vocabulary padding leaked",
        "five more rows, of which the config says nothing",
        "accounting",
        changes.padding_leaked(said=False),
    ),
    Mutant(
        "vocabulary padding leaked into the config", "five more tokens", "accounting", changes.padding_leaked(said=True)
    ),
    Mutant("one shard from another checkpoint", "of the same architecture", "roundtrip", changes.foreign_shard),
    Mutant(
        "bf16 rounding of an fp32 norm",
        "stored in fp32 all the same",
        "roundtrip",
        changes.at("norm_mlp", 2, changes.rounded),
        local=True,
    ),
    Mutant(
        "bf16 rounding of an fp32 matrix",
        "stored in fp32 all the same",
        "roundtrip",
        changes.at("up", 2, changes.rounded),
        local=True,
    ),
    Mutant("one element's sign", "in a matrix", "roundtrip", changes.at("v", 1, changes.one_element), local=True),
    Mutant("matrix scaled", "by one percent", "roundtrip", changes.at("down", 1, lambda x: x * 1.01), local=True),
    Mutant("NaN in one element", "of a matrix", "roundtrip", changes.at("up", 1, changes.nan), local=True),
    Mutant(
        "NaN in one row of the embedding",
        "",
        "roundtrip",
        changes.at("embed", 0, changes.nan),
        local=True,
        fits=lambda case: case.name != "GPT-2 → nanoGPT",
    ),
    Mutant("truncated last shard", "64 bytes less", "accounting", damage=changes.truncated),
    Mutant(
        "last bytes of the last shard are zero", "a download that stopped", "roundtrip", damage=changes.last_bytes_zero
    ),
    Mutant(
        "an index that lost a shard consistently",
        "neither file nor index has its tensors",
        "accounting",
        changes.shard_lost,
    ),
    Mutant(
        "an index that names a ghost", "a tensor that no file has", "accounting", damage=changes.index_names_a_ghost
    ),
    Mutant("an orphaned tensor", "an old copy of a norm", "accounting", changes.orphan),
    Mutant(
        "config with another rotary base",
        "",
        "accounting",
        damage=changes.config_lies({"rope_theta": 777.0}),
        fits=lambda case: case.name != "GPT-2 → nanoGPT",
    ),
    Mutant("one tensor in another dtype", "nobody asked for it", "accounting", changes.other_dtype, local=True),
    # These can't change the function.
    Mutant(
        "bf16 rounding of an fp32 buffer",
        "the table of sinusoidal positions",
        "roundtrip",
        changes.at("positions", 0, changes.rounded),
        needs=("positions",),
        equivalent="the parallel block has rotary positions and never reads the table",
        fits=lambda case: "pos_encoder" in case.roles["positions"][0],
    ),
    Mutant(
        "norms swapped",
        "the attention's and the feed-forward's",
        "—",
        changes.roles_swapped("norm_attention", "norm_mlp"),
        fits=lambda case: case.spec.startswith("phi2"),
        equivalent="Phi has one norm, of which both are copies: the files are the same, byte for byte",
    ),
    Mutant(
        "hidden features of the feed-forward reordered",
        "rows of up and columns of down alike",
        "roundtrip",
        changes.features_reordered_throughout,
        equivalent=PERMUTED_FFN,
    ),
    Mutant(
        "heads reordered throughout",
        "in q, k, v and o alike",
        "roundtrip",
        changes.heads_reordered_throughout,
        equivalent=PERMUTED_HEADS,
        fits=lambda case: not _grouped(case),
    ),
    Mutant(
        "experts and router permuted alike",
        "in one layer",
        "roundtrip",
        changes.experts_and_router_permuted,
        needs=("router",),
        equivalent="the router's rows go with the experts; their sum runs in another order, with the same terms",
    ),
)
