"""Live models sharded over ranks: two processes under torchrun, with gloo, against the same conversion in one piece."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import converters
from mappings.tenny import Tenny
from tests.mappings.proof import assert_same_bytes, assert_same_logits, read_config, read_tensors
from tests.models import tiny_phi
from tests.models_llama import tiny_meta_llama

REPOSITORY = Path(__file__).resolve().parent.parent

WORKER = """
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import converters
from converters.ranks import everywhere
from mappings.tenny import Tenny, TennyConfig

work = Path(sys.argv[1])
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
spec = converters.load_spec("phi2_to_tenny")

with converters.open_converted(spec, work / "phi") as converted:
    config = dict(converted.config)
torch.manual_seed(dist.get_rank())  # so that what isn't loaded differs
model = Tenny(TennyConfig.from_dict(config)).to(torch.float32)
for layer in model.transformer_encoder.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
converters.load_into(model, spec, work / "phi")
state = model.state_dict()
assert any(isinstance(tensor, DTensor) for tensor in state.values())

there = converters.convert_state_dict(spec, state, reverse=True, config=config)
whole = {name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for name, tensor in there.items()}
shares = sum(tensor.to_local().numel() for tensor in there.values() if isinstance(tensor, DTensor))
total = sum(tensor.numel() for tensor in whole.values())
assert shares < 0.7 * total, (shares, total)
if dist.get_rank() == 0:
    torch.save(whole, work / "whole.pth")
converters.save_converted(spec, state, work / "saved", reverse=True, config=config, max_shard_size="60KB")
converters.save_converted(spec, state, work / "cast", reverse=True, config=config, dtype="bfloat16")

try:
    converters.save_converted(spec, state, work / "saved", reverse=True, config=config)
except converters.OutputExistsError as error:
    print(f"refused on {dist.get_rank()} {type(error).__name__}\\n", end="", flush=True)
fused = "transformer_encoder.layers.0.self_attn.multihead_attn.in_proj_weight"
state[fused] = state[fused].full_tensor()[:-1]
try:
    converters.save_converted(spec, state, work / "never", reverse=True, config=config)
except converters.WeightmapError as error:
    print(f"failed on {dist.get_rank()} {type(error).__name__}\\n", end="", flush=True)

scalar = distribute_tensor(torch.tensor(3.5), mesh, [Replicate()])
rows = distribute_tensor(torch.arange(6.0).reshape(3, 2), mesh, [Shard(0)])
scalars = {"scale": scalar, "plain": torch.tensor(-7.0), "rows": rows}
converters.save_converted(converters.load_spec(work / "scalars.yaml"), scalars, work / "scalars")


def fails_on_the_second() -> None:
    if dist.get_rank() == 1:
        raise OSError("no space left")


try:
    everywhere(fails_on_the_second)
except converters.OutputError as error:
    print(f"told on {dist.get_rank()} {error}\\n", end="", flush=True)
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made of a small Phi, loaded into a Tenny that is sharded by FSDP2."""
    work = tmp_path_factory.mktemp("torchrun")
    tiny_phi(11).save_pretrained(work / "phi")
    (work / "worker.py").write_text(WORKER)
    (work / "scalars.yaml").write_text(
        'weightmap: 1\nsource: {layout: a}\ntarget: {layout: b}\nrename: {"{k}": "the.{k}"}\n'
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, work / "worker.py", work], capture_output=True, text=True, check=False, cwd=REPOSITORY,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (work / "output.txt").write_text(done.stdout)
    return work


def test_a_sharded_state_dict_converts_to_what_the_whole_one_does(work: Path) -> None:
    assert_same_bytes(torch.load(work / "whole.pth", weights_only=True), read_tensors(work / "phi"))


def test_each_rank_writes_its_share_and_the_result_is_a_checkpoint_of_the_hub(work: Path) -> None:
    assert_same_bytes(read_tensors(work / "saved"), read_tensors(work / "phi"))
    names = sorted(path.name for path in (work / "saved").iterdir())
    assert [name for name in names if not name.startswith("model-")] == ["config.json", "model.safetensors.index.json"]
    assert len(names) > 4
    phi = AutoModelForCausalLM.from_pretrained(work / "phi", dtype=torch.float32)
    saved = AutoModelForCausalLM.from_pretrained(work / "saved", dtype=torch.float32)
    assert type(saved) is type(phi)
    assert_same_logits(phi.eval(), saved.eval(), 251, atol=0)


def test_tensors_without_dimensions_keep_their_values(work: Path) -> None:
    found = {name: tensor.tolist() for name, tensor in read_tensors(work / "scalars").items()}
    assert found == {"the.scale": 3.5, "the.plain": -7.0, "the.rows": [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]}


def test_a_cast_on_the_way_out_is_said_in_the_config(work: Path) -> None:
    assert {tensor.dtype for tensor in read_tensors(work / "cast").values()} == {torch.bfloat16}
    assert read_config(work / "cast").get("dtype", "bfloat16") == "bfloat16"


def test_what_fails_fails_on_every_rank_and_leaves_nothing(work: Path) -> None:
    output = (work / "output.txt").read_text()
    for rank in (0, 1):
        assert f"refused on {rank} OutputExistsError" in output
        assert f"failed on {rank} " in output
        assert f"told on {rank} OSError: no space left" in output
    assert not (work / "never").exists()
    assert not [path.name for path in work.iterdir() if "staging" in path.name]


def test_without_torchrun_a_live_model_is_saved_as_well(tmp_path: Path) -> None:
    phi = tiny_phi(12)
    phi.save_pretrained(tmp_path / "phi")
    spec = converters.load_spec("phi2_to_tenny")
    converters.convert(spec, tmp_path / "phi", tmp_path / "there")
    plan = converters.save_converted(spec, phi.state_dict(), tmp_path / "saved", config=phi.config.to_dict())
    assert {target.info.name for target in plan.targets} == read_tensors(tmp_path / "saved").keys()
    assert_same_bytes(read_tensors(tmp_path / "saved"), read_tensors(tmp_path / "there"))
    assert_same_logits(phi, Tenny.from_pretrained(tmp_path / "saved"), 251)


def test_layouts_with_files_of_their_own_are_refused(tmp_path: Path) -> None:
    llama = tiny_meta_llama(3)
    with pytest.raises(converters.OutputError, match="files of its own names"):
        converters.save_converted(
            converters.load_spec("llama_meta_to_hf"), llama.state_dict(), tmp_path / "out", reverse=True
        )
