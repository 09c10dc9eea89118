"""Run by torchrun: saves a distributed checkpoint of a model that FSDP2 has sharded, and beside it what it holds.

`torchrun --nproc-per-node 2 dcp_ranks.py DIRECTORY` writes DIRECTORY/checkpoint and DIRECTORY/whole.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor


def main(directory: Path) -> None:
    distributed.init_process_group("gloo")
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    # Sizes that no number of ranks divides, and one smaller than it.
    model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3).bfloat16(), nn.Linear(3, 1))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state, optimizer_state = get_state_dict(model, optimizer)
    state |= {
        "middle": distribute_tensor(torch.arange(72.0).reshape(3, 4, 6), mesh, [Shard(1)]),
        "last": distribute_tensor(torch.arange(20).reshape(4, 5), mesh, [Shard(1)]),
        "wide": distribute_tensor(torch.randn(3, 500_001), mesh, [Shard(1)]),
        "alike": distribute_tensor(torch.randn(2, 3), mesh, [Replicate()]),
        "scalar": torch.tensor(2.5),
        "transposed": torch.arange(6.0).reshape(2, 3).t(),
    }
    dcp.save({"model": state, "optimizer": optimizer_state, "step": 5}, checkpoint_id=directory / "checkpoint")
    whole: dict[str, Tensor] = {
        name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in state.items()
    }
    if distributed.get_rank() == 0:
        torch.save(whole, directory / "whole.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
