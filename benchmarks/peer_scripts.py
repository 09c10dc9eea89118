"""What users run today in place of weightmap: `python benchmarks/peer_scripts.py NAME SOURCE OUTPUT`.

The two plain scripts are written as such scripts are; the others call a package's own converter.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

MERGEKIT = """\
merge_method: passthrough
slices: [{{sources: [{{model: {source}, layer_range: [0, {layers}]}}]}}]
dtype: float16
"""


def _load(source: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    state: dict[str, Any] = {}
    for file in sorted(source.glob("*.safetensors")):
        state |= load_file(file)
    return state


def script_there(source: Path, output: Path) -> None:
    """Phi-2 to Tenny: load, rename, `torch.cat`, save."""
    import torch
    from safetensors.torch import save_file

    state, new = _load(source), {}
    names = {
        "model.embed_tokens.": "encoder.",
        "model.final_layernorm.": "transformer_encoder.norm.",
        "lm_head.": "decoder.",
        "model.layers.": "transformer_encoder.layers.",
        "self_attn.dense.": "self_attn.multihead_attn.out_proj.",
        "mlp.fc1.": "ff.linear1.",
        "mlp.fc2.": "ff.linear2.",
    }
    for key, value in state.items():
        name = key
        for old, other in names.items():
            name = name.replace(old, other)
        if "input_layernorm" in key:
            new[name.replace("input_layernorm", "norm1")] = value
            new[name.replace("input_layernorm", "norm2")] = value.clone()
        elif "q_proj" in key:
            parts = [state[key.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            new[name.replace("q_proj.", "multihead_attn.in_proj_")] = torch.cat(parts)
        elif "k_proj" not in key and "v_proj" not in key:
            new[name] = value
    width = new["encoder.weight"].shape[1]
    angles = torch.arange(5000).double()[:, None] / 10000 ** (torch.arange(0, width, 2).double() / width)
    new["pos_encoder.pe"] = torch.stack([angles.sin(), angles.cos()], -1).reshape(5000, 1, width).float()
    save_file(new, output / "model.safetensors")


def script_back(source: Path, output: Path) -> None:
    """Tenny to Phi-2: load, rename, `chunk`, save."""
    from safetensors.torch import save_file

    new = {}
    names = {
        "transformer_encoder.layers.": "model.layers.",
        "transformer_encoder.norm.": "model.final_layernorm.",
        "encoder.": "model.embed_tokens.",
        "decoder.": "lm_head.",
        "self_attn.multihead_attn.out_proj.": "self_attn.dense.",
        "ff.linear1.": "mlp.fc1.",
        "ff.linear2.": "mlp.fc2.",
        ".norm1.": ".input_layernorm.",
    }
    for key, value in _load(source).items():
        if ".norm2." in key or key == "pos_encoder.pe":
            continue
        name = key
        for old, other in names.items():
            name = name.replace(old, other)
        if "in_proj_" in key:
            for part, chunk in zip(("q_proj", "k_proj", "v_proj"), value.chunk(3), strict=True):
                new[name.replace("multihead_attn.in_proj_", f"{part}.")] = chunk.contiguous()
        else:
            new[name] = value
    save_file(new, output / "model.safetensors")


def transformers_save(source: Path, output: Path) -> None:
    """Load the model, save the model."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(source, dtype="auto").save_pretrained(output)


def litgpt_there(source: Path, output: Path) -> None:
    """LitGPT's converter, which writes beside its input: `output` holds links to it."""
    del source
    from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint  # type: ignore[import-untyped]

    convert_hf_checkpoint(output, model_name="phi-2")


def litgpt_back(source: Path, output: Path) -> None:
    """LitGPT's converter the other way."""
    from litgpt.scripts.convert_lit_checkpoint import convert_lit_checkpoint  # type: ignore[import-untyped]

    convert_lit_checkpoint(source, output)


def mergekit_passthrough(source: Path, output: Path) -> None:
    """A merge of one model, which copies it."""
    import json

    from mergekit.scripts.run_yaml import main  # type: ignore[import-not-found]

    layers = json.loads((source / "config.json").read_text())["num_hidden_layers"]
    config = output.parent / "mergekit.yaml"
    config.write_text(MERGEKIT.format(source=source, layers=layers))
    main.main([str(config), str(output), "--no-copy-tokenizer", "--quiet"])


def torchtune_save(source: Path, output: Path) -> None:
    """The checkpointer of torchtune: to its own names and order of features, and back to those of Hugging Face."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tests.oracles import oracle  # stands in for data sets and quantization, which a checkpointer doesn't use

    checkpointing = oracle("torchtune.training.checkpointing")
    checkpointer = checkpointing.FullModelHFCheckpointer(
        checkpoint_dir=str(source),
        checkpoint_files=[file.name for file in sorted(source.glob("*.safetensors"))],
        model_type="LLAMA3",
        output_dir=str(output),
    )
    checkpointer.save_checkpoint({"model": checkpointer.load_checkpoint()["model"]}, epoch=0)


SCRIPTS = {
    function.__name__: function
    for function in (
        script_there,
        script_back,
        transformers_save,
        litgpt_there,
        litgpt_back,
        mergekit_passthrough,
        torchtune_save,
    )
}

if __name__ == "__main__":
    SCRIPTS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
