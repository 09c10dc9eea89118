"""The collapsed tree: labels, counts, alignment to the letter, hostile names, and speed."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.key_labels import MAX_LABEL_ITEMS, gather, label_of, runs_of
from converters.key_tree import KeyNode, build_key_tree, render_key_tree
from converters.tensor_info import DType, TensorInfo

F16, F32 = DType.F16, DType.F32


def phi(layers: int = 32) -> list[TensorInfo]:
    tensors = [
        TensorInfo("lm_head.bias", (51200,), F16),
        TensorInfo("lm_head.weight", (51200, 2560), F16),
        TensorInfo("model.embed_tokens.weight", (51200, 2560), F16),
        TensorInfo("model.final_layernorm.bias", (2560,), F16),
        TensorInfo("model.final_layernorm.weight", (2560,), F16),
    ]
    shapes = {"mlp.fc1": (10240, 2560), "mlp.fc2": (2560, 10240)}
    shapes |= {f"self_attn.{name}": (2560, 2560) for name in ("dense", "k_proj", "q_proj", "v_proj")}
    for layer in range(layers):
        for name, shape in shapes.items():
            tensors.append(TensorInfo(f"model.layers.{layer}.{name}.bias", shape[:1], F16))
            tensors.append(TensorInfo(f"model.layers.{layer}.{name}.weight", shape, F16))
    return tensors


def lines(*tensors: TensorInfo) -> list[str]:
    return [line.rstrip() for line in render_key_tree(build_key_tree(tensors))]


def labels(*names: str) -> list[str]:
    """The labels below the root, for tensors of one shape."""
    return [node.label for node in build_key_tree(TensorInfo(name, (2,), F32) for name in names).children]


def nodes(root: KeyNode) -> Iterator[KeyNode]:
    yield root
    for child in root.children:
        yield from nodes(child)


def test_a_whole_model() -> None:
    assert lines(*phi()) == [
        "lm_head                                                2 tensors  262.25 MB",
        "  weight                         [51200, 2560]  F16    1 tensor   262.14 MB",
        "  bias                           [51200]        F16    1 tensor   102.40 KB",
        "model                                                387 tensors    5.30 GB",
        "  embed_tokens.weight            [51200, 2560]  F16    1 tensor   262.14 MB",
        "  final_layernorm.{weight,bias}  [2560]         F16    2 tensors   10.24 KB",
        "  layers.{0..31}                                     384 tensors    5.03 GB",
        "    mlp                                              128 tensors    3.36 GB",
        "      fc1                                             64 tensors    1.68 GB",
        "        weight                   [10240, 2560]  F16   32 tensors    1.68 GB",
        "        bias                     [10240]        F16   32 tensors  655.36 KB",
        "      fc2                                             64 tensors    1.68 GB",
        "        weight                   [2560, 10240]  F16   32 tensors    1.68 GB",
        "        bias                     [2560]         F16   32 tensors  163.84 KB",
        "    self_attn                                        256 tensors    1.68 GB",
        "      dense                                           64 tensors  419.59 MB",
        "        weight                   [2560, 2560]   F16   32 tensors  419.43 MB",
        "        bias                     [2560]         F16   32 tensors  163.84 KB",
        "      {q,k,v}_proj                                   192 tensors    1.26 GB",
        "        weight                   [2560, 2560]   F16   96 tensors    1.26 GB",
        "        bias                     [2560]         F16   96 tensors  491.52 KB",
    ]


def test_empty() -> None:
    root = build_key_tree([])
    assert (root.tensor_count, root.nbytes, root.children, root.label) == (0, 0, (), "")
    assert render_key_tree(root) == []


# Labels


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["q_proj", "k_proj", "v_proj"], ["{q,k,v}_proj"]),
        (["dense", "k_proj", "q_proj", "v_proj"], ["dense", "{q,k,v}_proj"]),
        (["gate_proj", "up_proj"], ["{gate,up}_proj"]),
        (["input_layernorm", "post_attention_layernorm"], ["{input,post_attention}_layernorm"]),
        (["running_var", "running_mean"], ["running_{mean,var}"]),
        (["self_q_proj", "self_k_proj"], ["self_{q,k}_proj"]),
        (["key", "query", "value"], ["{query,key,value}"]),
        (["bias", "weight"], ["{weight,bias}"]),
        (["norm1", "norm2", "norm10"], ["norm{1,2,10}"]),
        (["norm", "norm1"], ["{norm,norm1}"]),
        (["proj", "a_proj"], ["{a_proj,proj}"]),
        (["wq", "wk"], ["{wk,wq}"]),
        (["0", "1", "2", "3", "5"], ["{0..3,5}"]),
        (["10", "9", "8"], ["{8..10}"]),
        (["0", "1"], ["{0,1}"]),
        (["0", "00"], ["0", "00"]),
        (["0", "2", "4", "6"], ["{0..6..2}"]),
        (["0", "1", "a", "b"], ["{0,1}", "{a,b}"]),
        ([str(i * i) for i in range(20)], ["{0,1,4,9,16,25,36,…,361}"]),
    ],
)
def test_siblings_of_one_shape(names: list[str], expected: list[str]) -> None:
    assert labels(*names) == expected
    assert labels(*[f"{name}.weight" for name in names]) == [f"{label}.weight" for label in expected]


def test_siblings_of_another_shape_dtype_or_structure_stay_apart() -> None:
    different = [
        TensorInfo("l.0.w", (2, 2), F32),
        TensorInfo("l.1.w", (2, 2), F32),
        TensorInfo("l.2.w", (2, 3), F32),
        TensorInfo("l.3.w", (2, 2), F16),
        TensorInfo("l.4.w", (2, 2), F32),
        TensorInfo("l.5.w", (2, 2), F32),
        TensorInfo("l.5.b", (2,), F32),
        TensorInfo("l.6.v", (2, 2), F32),
        TensorInfo("l.7.w.x", (2, 2), F32),
    ]
    assert lines(*different) == [
        "l                         9 tensors  136 bytes",
        "  {0,1,4}.w  [2, 2]  F32  3 tensors   48 bytes",
        "  2.w        [2, 3]  F32  1 tensor    24 bytes",
        "  3.w        [2, 2]  F16  1 tensor     8 bytes",
        "  5                       2 tensors   24 bytes",
        "    b        [2]     F32  1 tensor     8 bytes",
        "    w        [2, 2]  F32  1 tensor    16 bytes",
        "  6.v        [2, 2]  F32  1 tensor    16 bytes",
        "  7.w.x      [2, 2]  F32  1 tensor    16 bytes",
    ]


def test_the_order_of_the_file_does_not_matter() -> None:
    assert build_key_tree(phi()) == build_key_tree(reversed(phi()))
    assert labels("0.a", "0.b", "1.b", "1.a") == ["{0,1}.{a,b}"]


def test_a_name_that_is_a_tensor_and_a_prefix() -> None:
    assert labels("a", "a.b") == ["a", "a.b"]


def test_a_single_tensor_takes_one_line() -> None:
    assert lines(TensorInfo("a.b.c", (), F32)) == ["a.b.c  []  F32  1 tensor   4 bytes"]


def test_runs() -> None:
    assert runs_of([]) == []
    assert runs_of([7]) == ["7"]
    assert runs_of([1, 3, 5, 6, 7, 8]) == ["1", "3", "5..8"]
    assert runs_of([0, 1, 2, 4, 6, 8, 10, 11]) == ["0..2", "4..10..2", "11"]


def expanded(run: str) -> list[int]:
    numbers = [int(number) for number in run.split("..")]
    if len(numbers) == 1:
        return numbers
    return list(range(numbers[0], numbers[1] + 1, numbers[2] if len(numbers) == 3 else 1))


@given(st.sets(st.integers(0, 60)).map(sorted))
def test_runs_name_every_index_once(indices: list[int]) -> None:
    assert [index for run in runs_of(indices) for index in expanded(run)] == indices


# Names from a hostile file


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".a", "a.", "a..b", "{0..3}", "é.ü", "%s{}", "99999999999999999999999"]
)
def test_odd_names_keep_their_spelling(name: str) -> None:
    root = build_key_tree([TensorInfo(name, (1,), F32)])
    assert root.children[0].label == name
    assert root.tensor_count == 1


def test_control_characters_are_escaped_in_lines_and_kept_in_json() -> None:
    root = build_key_tree([TensorInfo("a\x1b[2J\n.\u202eb", (1,), F32)])
    assert render_key_tree(root) == ["a\\x1b[2J\\x0a.\\u202eb  [1]  F32  1 tensor   4 bytes"]
    assert root.to_json()["children"][0]["label"] == "a\x1b[2J\n.\u202eb"  # type: ignore[index]


def test_a_long_label_sticks_out_and_leaves_the_columns() -> None:
    assert lines(TensorInfo("a" * 100, (1,), F32), TensorInfo("b" * 10, (1,), F16)) == [
        "a" * 100 + "  [1]  F32  1 tensor   4 bytes",
        "b" * 10 + "  [1]  F16  1 tensor   2 bytes",
    ]


def test_thousands_of_levels() -> None:
    root = build_key_tree([TensorInfo(f"{'a.' * 200_000}{leaf}", (1,), F32) for leaf in "xy"])
    assert len(render_key_tree(root)) == 1
    assert root.tensor_count == 2


# JSON


def test_json_names_everything_that_a_label_stands_for() -> None:
    root = build_key_tree([TensorInfo(f"layers.{i}.{name}_proj", (4, 2), F16) for i in (0, 1, 3) for name in "qkv"])
    assert json.loads(json.dumps(root.to_json())) == {
        "label": "",
        "names": [],
        "shape": None,
        "dtype": None,
        "tensor_count": 9,
        "nbytes": 144,
        "children": [
            {
                "label": "layers.{0,1,3}.{q,k,v}_proj",
                "names": [["layers"], ["0", "1", "3"], ["k_proj", "q_proj", "v_proj"]],
                "shape": [4, 2],
                "dtype": "F16",
                "tensor_count": 9,
                "nbytes": 144,
                "children": [],
            }
        ],
    }


# Properties

SEGMENTS = st.sampled_from(
    ["0", "1", "2", "3", "5", "10", "a", "b", "q_proj", "k_proj", "norm1", "norm2", "weight", ""]
)
TENSORS = st.dictionaries(
    st.lists(SEGMENTS, min_size=1, max_size=5).map(".".join),
    st.tuples(st.sampled_from([(), (2,), (2, 3)]), st.sampled_from([F16, F32])),
    max_size=40,
).map(lambda kinds: [TensorInfo(name, shape, dtype) for name, (shape, dtype) in kinds.items()])


def keys_of(node: KeyNode, above: tuple[str, ...] = ()) -> Iterator[TensorInfo]:
    """Every tensor that a node stands for, read back from its names."""
    paths = [above]
    for names in node.names:
        paths = [(*path, name) for path in paths for name in names]
    for path in paths:
        if node.shape is not None and node.dtype is not None:
            yield TensorInfo(".".join(path), node.shape, node.dtype)
        for child in node.children:
            yield from keys_of(child, path)


@given(TENSORS)
def test_the_tree_stands_for_exactly_these_tensors(tensors: list[TensorInfo]) -> None:
    root = build_key_tree(tensors)
    by_name = sorted(tensors, key=lambda tensor: tensor.name)
    assert sorted(keys_of(root), key=lambda tensor: tensor.name) == by_name
    for node in nodes(root):
        if node.children:
            assert node.tensor_count == sum(child.tensor_count for child in node.children)
            assert node.nbytes == sum(child.nbytes for child in node.children)
    assert (root.tensor_count, root.nbytes) == (len(tensors), sum(tensor.nbytes for tensor in tensors))
    assert len(render_key_tree(root)) == sum(1 for _ in nodes(root)) - 1


@given(st.lists(st.text(alphabet="ab_01", max_size=5), unique=True, max_size=20))
def test_gathering_loses_no_name(names: list[str]) -> None:
    groups = gather(names)
    assert sorted(name for group in groups for name in group) == sorted(names)
    for group in groups:
        assert label_of(group).count(",") < MAX_LABEL_ITEMS + 1


# Speed


def test_a_hundred_thousand_tensors() -> None:
    shapes = {"gate_proj": (2048, 7168), "up_proj": (2048, 7168), "down_proj": (7168, 2048)}
    tensors = [
        TensorInfo(f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight", shape, DType.BF16)
        for layer in range(131)
        for expert in range(256)
        for name, shape in shapes.items()
    ]
    assert len(tensors) > 100_000
    root = build_key_tree(tensors)
    rendered = render_key_tree(root)
    assert [line.split("  [")[0].rstrip() for line in rendered[1:]] == ["  down_proj.weight", "  {gate,up}_proj.weight"]
    assert rendered[0].startswith("model.layers.{0..130}.mlp.experts.{0..255}  ")
