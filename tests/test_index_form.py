"""Arithmetic in keys: every form that is accepted can be undone, and whatever can't be is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.dims import parse_expression
from converters.errors import Location, SpecError
from converters.index_form import PLAIN, IndexForm, index_form, is_solvable, solve_index

WHERE = Location("s.yaml", 2, 5)
AFFINE = st.builds(IndexForm, st.sampled_from([-3, -1, 1, 2]), st.integers(-4, 20))


def form_of(text: str, **dims: int) -> IndexForm:
    return index_form(parse_expression(text), "i", dims, WHERE)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("i", PLAIN),
        ("i + 1", IndexForm(1, 1)),
        ("L - 1 - i", IndexForm(-1, 11)),
        ("2*(i - 3)", IndexForm(2, -6)),
        ("-i + L", IndexForm(-1, 12)),
        ("L*i", IndexForm(12)),
        ("i//3", IndexForm(1, 0, "//", 3)),
        ("(i+1) % L", IndexForm(1, 1, "%", 12)),
        ("3*i - 2*i", PLAIN),
    ],
)
def test_forms(text: str, form: IndexForm) -> None:
    assert form_of(text, L=12) == form
    assert form.plain == (form == PLAIN)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("i*i", "{i * i} can't be undone"),
        ("i/2", "{i / 2} can't be undone"),
        ("i//2 + 1", "{i // 2} can't be undone"),
        ("i - i", "{i - i} doesn't depend on i"),
        ("(i - i)//3", "{(i - i) // 3} doesn't depend on i"),
        ("0*i % 2", "{0 * i % 2} doesn't depend on i"),
        ("i//0", "{i // 0} must divide by a positive number"),
        ("i % (0 - 2)", "{i % (0 - 2)} must divide by a positive number"),
        ("i // i", "{i // i} must divide by a positive number"),
        ("i + M", "the value of M, which {M} needs, isn't known"),
    ],
)
def test_what_cannot_be_undone(text: str, what: str) -> None:
    with pytest.raises(SpecError) as caught:
        form_of(text)
    assert (caught.value.problems[0].what, caught.value.problems[0].where) == (what, WHERE)


@given(st.integers(0, 500), st.lists(AFFINE, max_size=2), AFFINE, st.integers(1, 7), st.booleans(), st.randoms())
def test_what_is_solvable_is_solved(
    index: int,
    forms: list[IndexForm],
    inner: IndexForm,
    divisor: int,
    halves: bool,  # noqa: FBT001
    random: object,
) -> None:
    if halves or not forms:
        forms = [*forms, *(IndexForm(inner.factor, inner.offset, operator, divisor) for operator in ("//", "%"))]
    random.shuffle(forms)  # type: ignore[attr-defined]
    assert is_solvable(forms)
    occurrences = [(form, form.value(index)) for form in forms]
    assert solve_index(occurrences) == index
    # A number that contradicts the others is no match.
    form, value = occurrences[-1]
    if len(occurrences) > 1 and not form.operator:
        assert solve_index([*occurrences[:-1], (form, value + 1)]) is None


def test_a_quotient_alone_says_too_little() -> None:
    assert not is_solvable([IndexForm(1, 0, "//", 3)])
    assert not is_solvable([IndexForm(1, 0, "//", 3), IndexForm(1, 0, "%", 2)])
    assert not is_solvable([IndexForm(1, 0, "//", 3), IndexForm(1, 1, "%", 3)])
    assert solve_index([(IndexForm(1, 0, "//", 3), 2), (IndexForm(1, 0, "%", 3), 3)]) is None, "no remainder is 3"
    assert solve_index([(IndexForm(2), 3)]) is None
    assert solve_index([(IndexForm(1, 5), 3)]) is None, "there is no index below zero"
