"""Axis sizes, merged axes, leaves, and what lowering says when two sides don't fit, to the letter."""

from __future__ import annotations

import pytest

from converters.axis_merge import merge_unknown
from converters.axis_sizes import UnsolvedError
from converters.layout import Layout, parse_layout
from converters.lowering import Lowered, check_structure, lower
from converters.operands import LayoutMismatchError, Operand
from converters.strided import StridedCopy

Shape = tuple[int, ...]


def operands(texts: str | dict[str, str], place: str) -> list[Operand]:
    """One operand, or one for each label; `e,f: o i` has the axes e and f in its key."""
    each = {None: texts} if isinstance(texts, str) else texts
    found = []
    for label, text in each.items():
        keys, colon, layout = text.partition("::")
        axes = tuple(keys.split(",")) if colon else ()
        found.append(Operand(label, parse_layout(layout if colon else text), axes, label or place))
    return found


def lowered(source: str | dict[str, str], target: str | dict[str, str], *shapes: Shape, **sizes: int) -> Lowered:
    return lower(operands(source, "from"), shapes, operands(target, "to"), sizes)


def refusal(source: str | dict[str, str], target: str | dict[str, str], *shapes: Shape, **sizes: int) -> list[str]:
    with pytest.raises(LayoutMismatchError) as caught:
        lowered(source, target, *shapes, **sizes)
    return [f"{operand.place}: {message}" for operand, message in caught.value.problems]


# --- what it gives -----------------------------------------------------------------------------------------------


def test_a_whole_tensor_is_one_range() -> None:
    for layout in ("...", "a ...", "... b", "a b c"):
        result = lowered(layout, layout, (2, 3, 4))
        assert result.target_shapes == ((2, 3, 4),)
        assert [piece.copy for piece in result.pieces] == [StridedCopy((24,), 0, (1,), 0, (1,))]


def test_a_fuse_is_a_range_for_each_block() -> None:
    result = lowered(
        {"q": "(H D) ...", "k": "(G D) ...", "v": "(G D) ..."},
        "(q: H D | k: G D | v: G D) ...",
        (8, 5),
        (4, 5),
        (4, 5),
        H=4,
        G=2,
    )
    assert result.target_shapes == ((16, 5),)
    starts = {piece.source: (piece.copy.target_start, piece.copy.size) for piece in result.pieces}
    assert starts == {0: (0, 40), 1: (40, 20), 2: (60, 20)}
    assert all(piece.copy.is_range for piece in result.pieces)
    assert {name: result.sizes[name] for name in "HGD"} == {"H": 4, "G": 2, "D": 2}


def test_experts_are_stacked_one_range_each() -> None:
    result = lowered("e:: f i", "e f i", (2, 3), e=4)
    assert result.target_shapes == ((4, 2, 3),)
    found = [(piece.source_index, piece.target_index, piece.copy.target_start) for piece in result.pieces]
    assert found == [((0,), (), 0), ((1,), (), 6), ((2,), (), 12), ((3,), (), 18)]


def test_an_axis_may_move_from_one_key_into_another() -> None:
    result = lowered("e,t:: i", "t:: e i", (5,), e=2, t=3)
    found = {piece.source_index: (piece.target_index, piece.copy.target_start) for piece in result.pieces}
    assert found[1, 2] == ((2,), 5)
    assert len(found) == 6


def test_the_size_of_an_axis_that_moves_into_keys_is_read_off_the_tensor() -> None:
    result = lowered("e f i", "e:: f i", (3, 2, 2))
    assert [piece.target_index for piece in result.pieces] == [(0,), (1,), (2,)]
    assert result.target_shapes == ((2, 2),)


def test_numbers_are_paired_in_order() -> None:
    result = lowered("(2 a 3) 2", "3 (2 2) a", (12, 2))
    assert result.target_shapes == ((3, 4, 2),)
    # 12 = 2 x a x 3: the first 2 of one side is the first of the other, which is the outer one of (2 2).
    (piece,) = result.pieces
    at = dict(zip(piece.copy.target_strides, piece.copy.source_strides, strict=True))
    assert at == {8: 2, 4: 12, 2: 1, 1: 6}


def test_an_empty_tensor_has_shapes_and_no_pieces() -> None:
    assert lowered("a b", "b a", (0, 3)) == Lowered(((3, 0),), (), {"a": 0, "b": 3})
    assert lowered("e f", "e:: f", (3, 0)).target_shapes == ((0,),)


def test_a_scalar_is_one_element() -> None:
    assert lowered("...", "...", ()).pieces[0].copy == StridedCopy((), 0, (), 0, ())
    assert lowered("", "1 1", ()).target_shapes == ((1, 1),)
    assert lowered("e:: ", "e", (), e=2).target_shapes == ((2,),)


def test_huge_shapes_are_only_numbers() -> None:
    result = lowered("(H d 2) i", "(H 2 d) i", (1 << 40, 1 << 20), H=1 << 10)
    assert result.target_shapes == ((1 << 40, 1 << 20),)
    assert result.pieces[0].copy.size == 1 << 60


def test_the_rest_is_nothing_too() -> None:
    assert lowered("(a b) ...", "(b a) ...", (6,), a=2).target_shapes == ((6,),)
    assert lowered("... (a b)", "b a ...", (4, 5, 6), a=2).target_shapes == ((3, 2, 4, 5),)


# --- sizes -------------------------------------------------------------------------------------------------------


def test_axes_that_stay_together_need_no_size_of_their_own() -> None:
    result = lowered(
        {"q": "(H D) ...", "k": "(G D) ...", "v": "(G D) ..."}, "(q: H D | k: G D | v: G D) ...", (8,), (4,), (4,)
    )
    assert result.target_shapes == ((16,),)


def test_axes_that_are_taken_apart_need_one() -> None:
    assert refusal("(H D) i", "(D H) i", (12, 2)) == [
        "from: the sizes of D and H can't be worked out from dim 0 = 12 alone"
    ]
    assert lowered("(H D) i", "(D H) i", (12, 2), D=3).sizes["H"] == 4


def test_axes_of_a_key_are_not_merged() -> None:
    assert refusal("(e f) i", "e,f:: i", (6, 2)) == [
        "from: the sizes of e and f can't be worked out from dim 0 = 6 alone"
    ]
    assert len(lowered("(e f) i", "e,f:: i", (6, 2), e=2).pieces) == 6


def test_a_size_of_zero_leaves_the_other_open() -> None:
    assert refusal("(e F) i", "e:: F i", (0, 2), F=0) == [
        "from: nothing gives the size of e in '(e F) i'",
        "to: nothing gives the size of e in 'F i'",
    ]


def test_merging_follows_neighbours() -> None:
    def merged(*texts: str, known: str = "") -> list[str]:
        trees: list[Layout] = [parse_layout(text) for text in texts]
        return [str(layout) for layout in merge_unknown(trees, frozenset(known.split()))]

    assert merged("(H D) i", "(x: H D | y: 2) i") == ["(H D) i", "(x: (H D) | y: 2) i"]
    assert merged("(G r D) i", "(x: G r D) i") == ["((G r) D) i", "(x: ((G r) D)) i"]
    assert merged("(H D) i", "(D H) i") == ["(H D) i", "(D H) i"]
    assert merged("(H D) i", "H D i") == ["(H D) i", "H D i"]
    assert merged("(H D) i", "(H D) i", known="H") == ["(H D) i", "(H D) i"]


def test_unsolved_is_told_apart_from_contradiction() -> None:
    with pytest.raises(UnsolvedError):
        lowered("(H D)", "(D H)", (6,))
    with pytest.raises(LayoutMismatchError) as caught:
        lowered("(H D)", "(D H)", (6,), H=4)
    assert not isinstance(caught.value, UnsolvedError)


# --- messages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "shapes", "sizes", "messages"),
    [
        (
            "(q: H D | k: G D) i",
            {"q": "(H D) i", "k": "(G D) i"},
            [(7, 2)],
            {"H": 2, "G": 1, "D": 2},
            ["from: blocks sum to 6 (D=2, G=1, H=2), but dim 0 is 7"],
        ),
        ("E i", "i E", [(7, 2)], {"E": 6}, ["from: 'E' is 6 (E=6), but dim 0 is 7"]),
        ("(2 3) i", "(2 3) i", [(7, 2)], {}, ["from: '(2 3)' is 6 (the numbers in it), but dim 0 is 7"]),
        ("(H D) i", "H D i", [(7, 2)], {"H": 2}, ["from: dim 0 is 7, which '(H D)' can't be with H=2"]),
        (
            "a a2",
            "a2 a",
            [(7, 2, 3)],
            {},
            ["from: the layout 'a a2' wants 2 dimensions, but the tensor has 3: [7, 2, 3]"],
        ),
        (
            "a b ...",
            "b a ...",
            [(7,)],
            {},
            ["from: the layout 'a b ...' wants at least 2 dimensions, but the tensor has 1: [7]"],
        ),
        (
            {"q": "a ...", "k": "a ..."},
            "(q: a | k: a) ...",
            [(2, 3), (2, 4)],
            {},
            ["k: '...' stands for [4] here and for [3] in another tensor of the rule"],
        ),
        ({"q": "a", "k": "a"}, "(q: a | k: a)", [(2,), (3,)], {}, ["k: 'a' is 2 (a=2), but dim 0 is 3"]),
        ("a b", "a c", [(2, 3)], {}, ["to: nothing gives the size of c in 'a c'"]),
        ("a b", "a", [(2, 3)], {}, ["to: axis b of 'a b' is not in 'a'"]),
        ("a ...", "a", [(2, 3)], {}, ["to: axis ...0 of 'a ...' is not in 'a'"]),
        ("a a", "a a", [(2, 2)], {}, ["from: axis a occurs twice in 'a a'", "to: axis a occurs twice in 'a a'"]),
        ("e:: e i", "e i", [(2, 3)], {"e": 2}, ["from: axis e occurs twice in 'e i'"]),
        (
            "(q: a | k: b)",
            {"q": "a", "v": "b"},
            [(5,)],
            {"a": 2, "b": 3},
            [
                "from: block 'k' of '(q: a | k: b)' goes nowhere; the other side has 'q', 'v'",
                "v: block 'v' of 'b' comes from nowhere; the other side has 'q', 'k'",
            ],
        ),
        (
            {"q": "a", "k": "a"},
            "(a b)",
            [(2,), (2,)],
            {"b": 2},
            [
                "k: block (unlabelled) of 'k' can't be told from 'q': give each a label that the other side knows",
                "k: axis b of '(a b)' is not in 'a'",
            ],
        ),
        (
            "(e f) i",
            "e,f:: i",
            [(10**9, 0)],
            {"e": 10**5},
            ["to: it would be e=100000 x f=10000 tensors, and no checkpoint holds more than 1000000"],
        ),
    ],
)
def test_messages(
    source: str | dict[str, str],
    target: str | dict[str, str],
    shapes: list[Shape],
    sizes: dict[str, int],
    messages: list[str],
) -> None:
    assert refusal(source, target, *shapes, **sizes) == messages


@pytest.mark.parametrize(
    ("source", "target", "messages"),
    [
        ("(H D) ...", "(D H) ...", []),
        ("a b", "a c", ["to: axis b of 'a b' is not in 'a c'", "from: axis c of 'a c' is not in 'a b'"]),
        ("(q: a | _: b)", {"q": "a"}, []),
        ("(q: a | k: b)", {"q": "a"}, ["from: block 'k' of '(q: a | k: b)' goes nowhere; the other side has 'q'"]),
        ("2 3", "(2 3)", []),
        (
            "2 3",
            "6",
            [
                "to: axis 2 (number 1), 3 (number 1) of '2 3' is not in '6'",
                "from: axis 6 (number 1) of '6' is not in '2 3'",
            ],
        ),
        ("e:: i", "e i", []),
        ("i", "e i", ["from: axis e of 'e i' is not in 'i'"]),
    ],
)
def test_structure_is_checked_without_a_tensor(
    source: str | dict[str, str], target: str | dict[str, str], messages: list[str]
) -> None:
    found = check_structure(operands(source, "from"), operands(target, "to"))
    assert [f"{operand.place}: {message}" for operand, message in found] == messages
