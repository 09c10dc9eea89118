"""YAML to a spec: every construct of the language, and every problem of a file at once, each with line and column."""

from __future__ import annotations

from pathlib import Path

import pytest

from converters.config_mapping import ConfigSide
from converters.dims import parse_expression
from converters.errors import SpecError
from converters.layout import WHOLE, parse_layout
from converters.operations.cast import Cast
from converters.operations.fill import Fill
from converters.pattern import Choice, Index
from converters.spec import Drop, Proof, Term
from converters.spec_file import load_spec_file, parse_spec
from converters.tensor_info import DType
from tests.planning import spec_of, spec_refusal_of

EVERYTHING = """\
weightmap: 1
name: everything
description: all of the language
models: [One, Two-7B]
proof: {oracles: [one, two], compares: logits, tolerance: 1.0e-4}
source: {layout: a/x, config: {model_type: x}, strip_prefix: [module.], drop: {"*.buf": not needed}}
target: {layout: b/x, config: {model_type: z}, drop: {"*.cache": made anew}}
strip_prefix: [_orig_mod.]
dims: {L: config.L, E: 4, H: config.H or 2}
placeholders: {i: 0..L, p: weight|bias}
rename:
  a.{i}.{p}: b.{i}.{p}
rules:
  - from: {q: "q.{i}", k: "k.{i}"}
    to: "qk.{i}"
    layout: {q: "(H D) ...", k: "(H D) ...", to: "(q: H D | k: H D) ..."}
  - {from: w, to: v, layout: i o -> o i, cast: {from: F16, to: float32}, optional: true}
  - {from: {tie: [e, h]}, copy: [x, z], when: config.tied}
  - {from: {copy: [c, d]}, tie: [f, g], when: not config.tied}
  - {fill: zeros, to: pe, shape: [2 * E, 1], dtype: bf16}
  - {fill: ones, from: old, shape: [E]}
drop: {rope.freqs: computed}
config:
  rename: {hidden: width}
  source: {set: {a: 1}, derive: {half: config.width // 2}}
  target: {default: {scale: 1.5}, delete: {junk: of no use}}
notes:
  - {say: hello, when: config.H > 1}
"""


def test_every_construct() -> None:
    spec = parse_spec(EVERYTHING, "all.yaml")
    assert (spec.name, spec.description, spec.path) == ("everything", "all of the language", "all.yaml")
    assert spec.models == ("One", "Two-7B")
    assert spec.proof == Proof(("one", "two"), "logits", 1e-4)
    assert spec.inverse().proof == spec.proof
    assert spec.source.strip_prefix == ("module.", "_orig_mod.")
    assert spec.source.drop == (Drop("*.buf", "not needed"), Drop("rope.freqs", "computed"))
    assert spec.target.drop == (Drop("*.cache", "made anew"),)
    assert dict(spec.placeholders) == {
        "i": Index(parse_expression("0"), parse_expression("L")),
        "p": Choice(("weight", "bias")),
    }
    rename, fuse, cast, tie, copy, fill, check = spec.rules
    assert rename.kind == "rename"
    assert rename.path == "rename.a.{i}.{p}"
    assert [str(term) for term in fuse.sources] == ["q: q.{i}", "k: k.{i}"]
    assert fuse.targets[0].layout == parse_layout("(q: H D | k: H D) ...")
    assert fuse.kind == "layout"
    assert (cast.operations, cast.optional, cast.exactness) == ((Cast(DType.F32, DType.F16),), True, "exact")
    assert (cast.sources[0].layout, cast.targets[0].layout) == (parse_layout("i o"), parse_layout("o i"))
    assert (tie.sources[0].sharing, tie.targets[0].sharing, tie.kind) == ("tie", "copy", "copy")
    assert (copy.sources[0].sharing, copy.targets[0].sharing) == ("copy", "tie")
    assert tie.when == parse_expression("config.tied")
    assert (fill.fill, fill.dtype, fill.shape) == (
        Fill("zeros"),
        "BF16",
        (parse_expression("2*E"), parse_expression("1")),
    )
    assert (check.sources[0].layout, check.targets, check.kind) == (WHOLE, (), "fill")
    assert isinstance(check.sources[0], Term)
    assert spec.config is not None
    assert spec.config.source == ConfigSide(set={"a": 1}, derive={"half": parse_expression("config.width//2")})
    assert spec.notes[0].say == "hello"
    assert str(spec.rules[1].location) == "all.yaml:14:5"


def test_problems_come_all_at_once_in_order_of_their_lines() -> None:
    text = """\
weightmap: 2
naem: x
source: {layuot: a}
target: {layout: b}
dims: {2H: 3, E: config.}
placeholders: {E: int, p: weight}
rename:
  a..b: c
  d: [e]
rules:
  - {from: a, too: b, layout: "i o -> (o i"}
  - {from: [a, b], to: c}
  - {from: a, to: b, optional: maybe}
  - {from: a, to: b, cast: f17}
drop: {x: ""}
notes: [{when: config.x}]
"""
    with pytest.raises(SpecError) as caught:
        parse_spec(text, "s.yaml")
    found = [(str(problem.where), problem.what, problem.hint) for problem in caught.value.problems]
    places = [place for place, _, _ in found]
    assert places == sorted(places, key=lambda place: [int(number) for number in place.split(":")[1:]])
    by_place = {place: (what, hint) for place, what, hint in found}
    expected = {
        "s.yaml:1:12": ("this weightmap reads version 1 of the language", None),
        "s.yaml:2:1": ("a spec has no key 'naem'", "did you mean 'name'?"),
        "s.yaml:3:10": ("source has no key 'layuot'", "did you mean 'layout'?"),
        "s.yaml:3:9": ("'source.layout' is missing", "name the layout, such as hf/phi"),
        "s.yaml:5:8": ("'2H' is no name for a dim", "use a name such as H or head_dim"),
        "s.yaml:8:3": ("'a..b' has an empty segment between two dots", None),
        "s.yaml:9:6": ("'rename.d' must be text", None),
        "s.yaml:11:15": ("rules[0] has no key 'too'", "did you mean 'to'?"),
        "s.yaml:12:12": (
            "rules[1].from is a list",
            "label each key ({q: ..., k: ...}), or write {copy: [...]} for equal tensors",
        ),
        "s.yaml:13:32": ("'rules[2].optional' must be true or false", None),
        "s.yaml:15:8": ("dropping 'x' needs a reason", "write 'x': \"why nobody will miss it\""),
        "s.yaml:16:9": ("a note needs 'say'", None),
    }
    assert {place: by_place.get(place) for place in expected} == expected
    assert by_place["s.yaml:11:31"][0] == "layout: a parenthesis that isn't closed, at column 2 of the layout"
    assert by_place["s.yaml:14:28"][0].startswith("rules[3].cast: 'f17' is no dtype; there are: BOOL, F4, ")
    assert by_place["s.yaml:6:27"][0] == "'weight' is no kind of placeholder"
    assert by_place["s.yaml:5:18"][0] == "column 8: expected the name of a key, got the end"
    assert by_place["s.yaml:11:5"][0] == "rules[0] has no 'to'"
    assert len(found) == len(expected) + 5, "and nothing that follows from another problem"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "s.yaml:1:1: a spec without rules maps nothing\n    add 'rename:' or 'rules:'"),
        ("rules: {a: b}", "s.yaml:5:8: 'rules' must be a list, each item on a line that starts with '-'"),
        ("rename: [a]", "s.yaml:5:9: 'rename' must be a mapping of keys to values"),
        ("rules: [a]", "s.yaml:5:9: rules[0] must be a mapping of keys to values"),
        ("rules: [{from: a}]", "s.yaml:5:9: rules[0] has no 'to'"),
        ("rules: [{to: a}]", "s.yaml:5:9: rules[0] has no 'from'"),
        ("rename: {a: ''}", "s.yaml:5:13: a key pattern can't be empty"),
        ("rename: {a: 3}", "s.yaml:5:13: 'rename.a' must be text\n    put it in quotes"),
        (
            "rules: [{from: a, to: b, copy: [c, d]}]",
            "s.yaml:5:32: rules[0] has both 'to' and 'copy'\n    'copy' is a list of all the targets",
        ),
        ("rules: [{from: a, copy: [c]}]", "s.yaml:5:25: rules[0].copy has a single key\n    write it without the list"),
        (
            "rules: [{from: {from: a, k: b}, to: c, layout: {from: i, k: i, to: '(from: i | k: i)'}}]",
            "s.yaml:5:17: 'from' can't be a label\n    use a name such as q",
        ),
        (
            "rules: [{from: {q: a, k: b}, to: c}]",
            (
                "s.yaml:5:9: rules[0] joins or splits tensors and has no 'layout'\n"
                "    give each term its layout, as in q: '(H D) ...'"
            ),
        ),
        (
            "rules: [{from: a, to: c, layout: i o}]",
            "s.yaml:5:34: rules[0].layout must say both sides\n    write 'i o -> o i', or a layout for each label",
        ),
        (
            "rules: [{from: {q: a, k: b}, to: c, layout: {q: i, v: i, to: '(q: i | k: i)'}}]",
            "s.yaml:5:52: rules[0].layout.v: there is no such term\n    the terms are: k, q, to",
        ),
        (
            "rules: [{from: {q: a, k: b}, to: c, layout: {q: i, to: '(q: i | k: i)'}}]",
            "s.yaml:5:45: rules[0].layout says nothing of 'k'\n    '...' keeps all of its dimensions",
        ),
        (
            "rules: [{from: a, to: b, shape: [3]}]",
            "s.yaml:5:33: rules[0].shape belongs to 'fill'",
        ),
        (
            "rules: [{fill: nines, to: b, shape: [3]}]",
            "s.yaml:5:16: rules[0].fill: 'nines' is no filling\n    there are: zeros, ones, arange, sinusoidal",
        ),
        (
            "rules: [{fill: ones, to: b}]",
            "s.yaml:5:16: rules[0]: 'fill' needs the tensor's 'shape'\n    write shape: [5000, 1, E]",
        ),
        (
            "rules: [{fill: ones, from: a, to: b, shape: [3]}]",
            (
                "s.yaml:5:16: rules[0]: 'fill' makes the tensor 'to', or checks the tensor 'from' on a way back\n"
                "    give one of the two"
            ),
        ),
        (
            "rules: [{fill: ones, from: a, copy: [b, c], shape: [3]}]",
            (
                "s.yaml:5:16: rules[0]: 'fill' makes the tensor 'to', or checks the tensor 'from' on a way back\n"
                "    give one of the two"
            ),
        ),
        (
            "rules: [{fill: ones, to: b, shape: [3], cast: F16, layout: i -> i}]",
            (
                "s.yaml:5:47: rules[0].cast has no meaning beside 'fill'\n    give the 'shape' and 'dtype' to make\n"
                "s.yaml:5:60: rules[0].layout has no meaning beside 'fill'\n    give the 'shape' and 'dtype' to make"
            ),
        ),
        (
            "rules: [{from: a, to: b, cast: {to: F16}}]",
            "s.yaml:5:32: rules[0].cast needs 'from' and 'to'\n    write {from: F16, to: F32}",
        ),
        (
            "dims: {config: 3}\nrename: {a: b}",
            "s.yaml:5:8: 'config' is no name for a dim\n    use a name such as H or head_dim",
        ),
        ("dims: {L: 2}\nplaceholders: {L: int}\nrename: {'a.{L}': b}", "s.yaml:6:16: 'L' is a dim already"),
        ("rename: {a: b}\nconfig: {rename: {a: 3}}", "s.yaml:6:22: 'config.rename.a' must be text"),
        (
            "rename: {a: b}\nconfig: {target: {delete: {a: ''}}}",
            "s.yaml:6:28: deleting 'a' from the config needs a reason",
        ),
    ],
)
def test_problems_to_the_letter(body: str, message: str) -> None:
    assert spec_refusal_of(body).startswith(message)


def test_a_file_is_read_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "my_spec.yaml"
    path.write_text("weightmap: 1\nsource: {layout: a}\ntarget: {layout: b}\nrename: {x: z}\n")
    spec = load_spec_file(path)
    assert spec.name == "my_spec", "the file's name, where the spec says none"
    assert str(spec.rules[0].location) == f"{path}:4:10"
    assert len(spec.digest) == 64
    with pytest.raises(SpecError, match="No such file"):
        load_spec_file(tmp_path / "other.yaml")


def test_the_digest_is_that_of_the_bytes() -> None:
    assert spec_of("rename: {a: b}").digest != spec_of("rename: {a: b} ").digest
    assert spec_of("rename: {a: b}") == spec_of("rename:   {a: b}"), "but the specs are equal"


@pytest.mark.parametrize(
    ("proof", "place", "what"),
    [
        ("[one]", "2:8", "'proof' must be a mapping of keys to values"),
        ("{oracles: [a], compares: b}", "2:8", "'proof.tolerance' is missing"),
        ("{oracles: [a], compares: b, tolerance: 1, with: c}", "2:50", "proof has no key 'with'"),
        ("{oracles: a, compares: b, tolerance: 1}", "2:18", "'proof.oracles' must be a list, each item on a line"),
        ("{oracles: [a], compares: [b], tolerance: 1}", "2:33", "'proof.compares' must be text"),
        ("{oracles: [a], compares: b, tolerance: -1}", "2:47", "'proof.tolerance' must be a number of at least 0"),
        ("{oracles: [a], compares: b, tolerance: true}", "2:47", "'proof.tolerance' must be a number of at least 0"),
    ],
)
def test_a_proof_that_says_too_little(proof: str, place: str, what: str) -> None:
    text = f"weightmap: 1\nproof: {proof}\nsource: {{layout: a}}\ntarget: {{layout: b}}\nrename: {{c: d}}\n"
    with pytest.raises(SpecError) as caught:
        parse_spec(text, "s.yaml")
    (problem,) = caught.value.problems
    assert str(problem.where) == f"s.yaml:{place}"
    assert what in problem.what
