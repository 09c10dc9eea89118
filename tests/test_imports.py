"""Imports go one way: what plans imports neither what moves bytes nor a tensor library. And no model is named."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import converters

ROOT = Path(converters.__file__).parent
LEFT = [
    "adapters",
    "errors",
    "tensor_info",
    "text",
    "arithmetic",
    "expression_operators",
    "expression_parser",
    "expression_scope",
    "expressions",
    "dims",
    "pattern",
    "index_form",
    "keys",
    "key_trie",
    "collector",
    "single_tensors",
    "index_sets",
    "layout",
    "located",
    "axis_sizes",
    "axis_merge",
    "leaves",
    "grid",
    "operands",
    "lowering",
    "strided",
    "spec",
    "spec_nodes",
    "spec_file",
    "spec_check",
    "spec_proof",
    "spec_side",
    "spec_yaml",
    "rule_file",
    "rule_operations",
    "config_map",
    "config_mapping",
    "bind",
    "matching",
    "made_sources",
    "completeness",
    "parts",
    "match_problems",
    "coverage",
    "planner",
    "rule_lowering",
    "rule_targets",
    "renames",
    "plan",
    "plan_json",
    "schedule",
    "reading_order",
    "panels",
    "sharding",
    "library",
    "detect",
    "key_tree",
    "key_labels",
    "yaml_builder",
    "yaml_dump",
    "yaml_nodes",
    "yaml_scalars",
    "yaml_syntax",
    "yaml_tree",
    "operations",
]
RIGHT = frozenset(
    [
        "engine",
        "gather",
        "made_reader",
        "storage",
        "publish",
        "convert",
        "lazy",
        "load",
        "ranks",
        "sharded",
        "state_dict",
        "torch_dtypes",
        "side_files",
        "fetch",
        "uploads",
        "config_file",
        "verify",
        "commands",
        "memory",
        "deferred_signals",
        "filesystem",
        "output_checks",
        "digests",
        "copying",
        "input_digests",
        "journal",
        "manifest",
        "published",
        "run",
        "source_checks",
        "in_place",
        "staging_names",
        "leftovers",
    ]
)
HEAVY = frozenset({"torch", "numpy", "ml_dtypes", "safetensors", "transformers", "huggingface_hub"})
MODELS = [
    "phi",
    "phi2",
    "llama",
    "llama2",
    "llama3",
    "gpt",
    "gpt2",
    "nanogpt",
    "bert",
    "distilbert",
    "roberta",
    "mistral",
    "mixtral",
    "gemma",
    "opt",
    "metaseq",
    "vit",
    "clip",
    "falcon",
    "neox",
    "tenny",
    "bloom",
    "qwen",
    "deepseek",
    "mamba",
    "t5",
    "whisper",
    "megatron",
    "mixformer",
]


def files_of(room: str) -> list[Path]:
    module = ROOT / f"{room}.py"
    return [module] if module.exists() else sorted((ROOT / room).rglob("*.py"))


def imports(tree: ast.AST, *, deep: bool) -> Iterator[str]:
    """Modules that are imported when a module is: those inside functions and for type checkers only with `deep`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not deep) or (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not deep
        ):
            continue
        else:
            yield from imports(node, deep=deep)


@pytest.mark.parametrize("room", LEFT)
def test_what_plans_imports_nothing_of_what_moves_bytes(room: str) -> None:
    assert files_of(room), f"{room} has gone; correct the list"
    for file in files_of(room):
        tree = ast.parse(file.read_text())
        found = {name.split(".")[1] for name in imports(tree, deep=True) if name.startswith("converters.")}
        assert not found & RIGHT, file
        assert not {name.split(".")[0] for name in imports(tree, deep=False)} & HEAVY, file


def test_every_module_belongs_to_a_half() -> None:
    rooms = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__"} == {*LEFT, *RIGHT}


def test_nothing_but_verify_imports_transformers() -> None:
    for file in ROOT.rglob("*.py"):
        names = {name.split(".")[0] for name in imports(ast.parse(file.read_text()), deep=True)}
        assert "transformers" not in names or "verify" in file.parts, file


@pytest.mark.parametrize(
    "code",
    [
        "import converters",
        "import converters; converters.load_spec('phi2_to_tenny')",
        "import converters.planner, converters.schedule, converters.engine",
        "import converters.commands",
    ],
)
def test_no_tensor_library_is_loaded_before_it_is_needed(code: str) -> None:
    script = f"{code}; import sys; print(sorted({set(HEAVY)!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert done.stdout.strip() == "[]"


def test_planning_loads_no_tensor_library() -> None:
    script = """
import sys
from converters.bind import bind
from converters.plan import Source
from converters.planner import make_plan
from converters.schedule import Budget, peak_memory
from converters.spec_file import parse_spec
from converters.tensor_info import DType, TensorInfo
spec = parse_spec('weightmap: 1\\nsource: {layout: a}\\ntarget: {layout: b}\\nrules:\\n'
                  '  - {from: a, to: b, layout: i o -> o i}\\n  - {fill: arange, to: c, shape: [3]}\\n')
plan = make_plan(bind(spec, None), [Source(TensorInfo('a', (3, 4), DType.F32), 'f')], dtype=DType.BF16)
peak_memory(plan, Budget(512_000_000, 2))
plan.to_json()
print(sorted({'torch', 'numpy', 'ml_dtypes'} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert done.stdout.strip() == "[]"


def words_outside_of_text_for_people(source: str) -> str:
    """The code with its docstrings and comments taken out: those may give a model as an example."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [  # type: ignore[attr-defined]
                each
                for each in body
                if not (
                    isinstance(each, ast.Expr)
                    and isinstance(each.value, ast.Constant)
                    and isinstance(each.value.value, str)
                )
            ] or [ast.Pass()]
    return ast.unparse(tree)


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_no_model_is_named_in_the_code(file: Path) -> None:
    code = words_outside_of_text_for_people(file.read_text())
    # Messages may show how a layout is named.
    code = code.replace("hf/phi", "")
    # Two keys of PEFT's adapter_config.json, whatever the model.
    code = code.replace("'megatron_config'", "").replace("'megatron_core'", "")
    assert not re.findall(rf"(?<![A-Za-z0-9])(?:{'|'.join(MODELS)})(?![A-Za-z0-9])", code, re.IGNORECASE)
