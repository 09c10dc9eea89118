"""The changes that mutants make: each a few lines on the tensors or the files of a correct output."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tests.mutations.cases import Case
from tests.mutations.files import INDEX, Checkpoint

Change = Callable[[Checkpoint, Case], None]


def swap(first: Tensor, second: Tensor) -> None:
    """Exchange the contents of two tensors of one shape."""
    kept = first.clone()
    first.copy_(second)
    second.copy_(kept)


def of_layer(key: str, case: Case) -> int | None:
    """The layer that a key of the target belongs to."""
    head, mark, _ = case.roles["o"][0].partition("{i}")
    if not mark or not key.startswith(head):
        return None
    return int(key.removeprefix(head).split(".")[0])


def layer_keys(checkpoint: Checkpoint, case: Case) -> dict[int, dict[str, str]]:
    """For each layer, its keys by their names without the layer."""
    head = case.roles["o"][0].partition("{i}")[0]
    found: dict[int, dict[str, str]] = {}
    for key in checkpoint.tensors:
        if (layer := of_layer(key, case)) is not None:
            found.setdefault(layer, {})[key.removeprefix(f"{head}{layer}.")] = key
    return found


# --- attention -------------------------------------------------------------------------------------------------------


def rope(rows: Tensor, heads: int, *, back: bool) -> None:
    """Neighbouring pairs to halves within each head, or back."""
    first, second = (2, -1) if back else (-1, 2)
    rows.copy_(rows.clone().unflatten(0, (heads, first, second)).transpose(1, 2).flatten(0, 2))


def rope_both(*, back: bool) -> Change:
    def change(checkpoint: Checkpoint, case: Case) -> None:
        for layer in range(case.layers):
            rope(case.view(checkpoint, "q", layer), case.heads, back=back)
            rope(case.view(checkpoint, "k", layer), case.kv_heads, back=back)

    return change


def k_permuted_with_query_heads(checkpoint: Checkpoint, case: Case) -> None:
    """As a converter does that has but one head count, and takes the size of a head from the tensor."""
    for layer in range(case.layers):
        rows = case.view(checkpoint, "k", layer)
        rope(rows, case.kv_heads, back=True)
        rope(rows, case.heads, back=False)


def scales_left(checkpoint: Checkpoint, case: Case) -> None:
    rope(case.view(checkpoint, "q_scale", 1), case.heads, back=True)


def integers_left(checkpoint: Checkpoint, case: Case) -> None:
    rope(case.view(checkpoint, "k", 1), case.kv_heads, back=True)


def interleaved(checkpoint: Checkpoint, case: Case) -> None:
    """The fused rows were `(heads (q | k | v) features)`, and were read as three blocks."""
    key, _ = case.roles["q"]
    for suffix in ("", "_bias") if "q_bias" in case.roles else ("",):
        key, _ = case.roles[f"q{suffix}"]
        for layer in range(case.layers):
            fused = checkpoint.tensors[key.format(i=layer)]
            fused.copy_(fused.clone().unflatten(0, (3, case.heads, -1)).transpose(0, 1).flatten(0, 2))


def equal_chunks(checkpoint: Checkpoint, case: Case) -> None:
    """A fused q, k and v of unequal sizes, cut into three equal parts: k and v hold each other's rows."""
    q, k, v = (case.view(checkpoint, role, 0) for role in "qkv")
    whole = torch.cat([q, k, v])
    rolled = whole.roll(len(q) - len(whole) // 3, 0)
    for part, rows in zip((q, k, v), rolled.split([len(q), len(k), len(v)]), strict=True):
        part.copy_(rows)


def roles_swapped(first: str, second: str, layer: int = 1, expert: int = 0) -> Change:
    def change(checkpoint: Checkpoint, case: Case) -> None:
        for suffix in ("", "_bias"):
            if first + suffix in case.roles and second + suffix in case.roles:
                pair = (case.view(checkpoint, role + suffix, layer, expert) for role in (first, second))
                swap(*pair)

    return change


def heads_reversed(checkpoint: Checkpoint, case: Case) -> None:
    rows = case.view(checkpoint, "q", 1)
    rows.copy_(rows.clone().unflatten(0, (case.heads, -1)).flip(0).flatten(0, 1))


def o_columns_reversed(checkpoint: Checkpoint, case: Case) -> None:
    o = case.view(checkpoint, "o", 2)
    o.copy_(o.clone().unflatten(1, (case.heads, -1)).flip(1).flatten(1, 2))


def q_scaled_twice(checkpoint: Checkpoint, case: Case) -> None:
    for layer in range(case.layers):
        for role in ("q", "q_bias"):
            if role in case.roles:
                case.view(checkpoint, role, layer).mul_(case.head_dim**-0.5)


def heads_reordered_throughout(checkpoint: Checkpoint, case: Case) -> None:
    """The same order of heads in q, k, v and in the columns of o: attention sums over heads in any order."""
    order = torch.tensor([*range(1, case.heads), 0])
    for role in ("q", "k", "v", "q_bias", "k_bias", "v_bias"):
        if role in case.roles:
            rows = case.view(checkpoint, role, 0)
            rows.copy_(rows.clone().unflatten(0, (case.heads, -1))[order].flatten(0, 1))
    o = case.view(checkpoint, "o", 0)
    o.copy_(o.clone().unflatten(1, (case.heads, -1))[:, order].flatten(1, 2))


# --- layers, experts, feed-forward -----------------------------------------------------------------------------------


def layers_moved(order: Callable[[int, int], int]) -> Change:
    def change(checkpoint: Checkpoint, case: Case) -> None:
        keys = layer_keys(checkpoint, case)
        kept = {key: tensor.clone() for key, tensor in checkpoint.tensors.items()}
        for layer, names in keys.items():
            other = keys[order(layer, len(keys))]
            for name, key in names.items():
                checkpoint.tensors[key].copy_(kept[other[name]])

    return change


def experts_permuted(checkpoint: Checkpoint, case: Case) -> None:
    for role in ("gate", "up", "down"):
        kept = [case.view(checkpoint, role, 1, expert).clone() for expert in range(case.experts)]
        for expert in range(case.experts):
            case.view(checkpoint, role, 1, expert).copy_(kept[(expert + 1) % case.experts])


def experts_and_router_permuted(checkpoint: Checkpoint, case: Case) -> None:
    experts_permuted(checkpoint, case)
    router = case.view(checkpoint, "router", 1)
    router.copy_(router.clone().roll(-1, 0))


def features_reordered_throughout(checkpoint: Checkpoint, case: Case) -> None:
    for expert in range(max(1, case.experts)):
        for role in ("gate", "up", "up_bias"):
            if role in case.roles:
                rows = case.view(checkpoint, role, 0, expert)
                rows.copy_(rows.clone().flip(0))
        down = case.view(checkpoint, "down", 0, expert)
        down.copy_(down.clone().flip(1))


# --- single values ---------------------------------------------------------------------------------------------------


def at(role: str, layer: int, edit: Callable[[Tensor], Tensor]) -> Change:
    def change(checkpoint: Checkpoint, case: Case) -> None:
        part = case.view(checkpoint, role, layer)
        part.copy_(edit(part.clone()))

    return change


def everywhere(role: str, edit: Callable[[Tensor], Tensor]) -> Change:
    def change(checkpoint: Checkpoint, case: Case) -> None:
        for layer in range(case.layers):
            part = case.view(checkpoint, role, layer)
            part.copy_(edit(part.clone()))

    return change


def nan(x: Tensor) -> Tensor:
    x.view(-1)[x.numel() // 2] = float("nan")
    return x


def one_element(x: Tensor) -> Tensor:
    place = x.numel() // 3
    x.view(-1)[place] = -x.view(-1)[place]
    return x


def row_from_its_neighbour(x: Tensor) -> Tensor:
    x[17] = x[18]
    return x


def rounded(x: Tensor) -> Tensor:
    # A float32 that went through bfloat16; where the checkpoint is in 16 bits already, through 8.
    return x.bfloat16().to(x.dtype) if x.dtype == torch.float32 else x.to(torch.float8_e4m3fn).to(x.dtype)


def final_norm_from_another(checkpoint: Checkpoint, case: Case) -> None:
    case.view(checkpoint, "norm_final").copy_(case.view(checkpoint, "norm_mlp", 0))


def stale_head(checkpoint: Checkpoint, case: Case) -> None:
    generator = torch.Generator().manual_seed(5)
    head = case.view(checkpoint, "head")
    head.add_((torch.randn(head.shape, generator=generator) * 0.02).to(head.dtype))


def padding_leaked(*, said: bool) -> Change:
    def change(checkpoint: Checkpoint, case: Case) -> None:
        for role in ("embed", "head", "head_bias"):
            if role in case.roles and case.roles[role][0] in checkpoint.tensors:
                key, rows = case.roles[role][0], case.view(checkpoint, role)
                checkpoint.tensors[key] = torch.cat([rows, rows[:5] * 0.01])
        if said:
            checkpoint.config["vocab_size"] += 5

    return change


# --- files -----------------------------------------------------------------------------------------------------------


def foreign_shard(checkpoint: Checkpoint, case: Case) -> None:
    other = Checkpoint.read(case.write(checkpoint.directory.parent / "other", seed=1000))
    name = checkpoint.file_of[case.roles["up"][0].format(i=1, e=0)]
    for key, file in checkpoint.file_of.items():
        if file == name:
            checkpoint.tensors[key] = other.tensors[key].to(checkpoint.tensors[key].dtype)


def truncated(checkpoint: Checkpoint, _: Case) -> None:
    path = checkpoint.directory / checkpoint.last_file()
    path.write_bytes(path.read_bytes()[:-64])


def last_bytes_zero(checkpoint: Checkpoint, _: Case) -> None:
    """As a download leaves it that reserved the whole file and stopped."""
    path = checkpoint.directory / checkpoint.last_file()
    path.write_bytes(path.read_bytes()[:-256] + bytes(256))


def shard_lost(checkpoint: Checkpoint, _: Case) -> None:
    lost = checkpoint.last_file()
    for key in [key for key, file in checkpoint.file_of.items() if file == lost]:
        checkpoint.remove(key)
    (checkpoint.directory / lost).unlink()


def index_names_a_ghost(checkpoint: Checkpoint, _: Case) -> None:
    index = json.loads((checkpoint.directory / INDEX).read_text())
    index["weight_map"]["ghost.weight"] = checkpoint.last_file()
    (checkpoint.directory / INDEX).write_text(json.dumps(index))


def orphan(checkpoint: Checkpoint, case: Case) -> None:
    key = case.roles["norm_final"][0]
    checkpoint.tensors[f"{key}_old"] = checkpoint.tensors[key].clone()
    checkpoint.file_of[f"{key}_old"] = checkpoint.file_of[key]


def other_dtype(checkpoint: Checkpoint, case: Case) -> None:
    key = case.roles["down"][0].format(i=1, e=0)
    tensor = checkpoint.tensors[key]
    checkpoint.tensors[key] = tensor.to(torch.float16 if tensor.dtype != torch.float16 else torch.bfloat16)


def config_lies(change: Mapping[str, object]) -> Change:
    def damage(checkpoint: Checkpoint, _: Case) -> None:
        path = checkpoint.directory / "config.json"
        config = json.loads(path.read_text())
        for key, value in change.items():
            holder = config.get("rope_parameters", config) if key == "rope_theta" else config
            holder[key] = value
            if key in config:
                config[key] = value
        path.write_text(json.dumps(config))

    return damage
