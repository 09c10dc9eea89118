from __future__ import annotations

import pytest

from converters.storage import torch_state_dict
from converters.storage.torch_descriptions import Other, Storage, Tensor, Unreadable
from converters.storage.torch_state_dict import StateDictFault, find_state_dict

T = Tensor(Storage("0", "float32", 1), 0, (1,), (1,), "float32")


def names(value: object) -> list[str]:
    return list(find_state_dict(value).tensors)


def notes(value: object) -> str:
    return "\n".join(find_state_dict(value).notes)


def test_a_state_dict_alone_is_taken_as_it_is_and_nothing_is_said() -> None:
    value = {"a": T, "model.b": T, "optimizer": T, "ema.weight": T, "state_dict": T}
    assert names(value) == list(value)
    assert not notes(value)


@pytest.mark.parametrize("key", ["state_dict", "model", "module", "model_state_dict"])
def test_the_usual_wrappers_are_opened(key: str) -> None:
    value = {"epoch": 1, key: {"a": T, "b": T}, "optimizer": {"state": {0: {"exp_avg": T, "step": T}}}, "rng": T}
    assert names(value) == ["a", "b"]
    assert f"its state dict is under '{key}'" in notes(value)
    assert "left out, since no part of the state dict: epoch, optimizer (2 tensors), rng (1 tensor)" in notes(value)


def test_wrappers_in_wrappers_are_opened() -> None:
    value = {"model": {"state_dict": {"a": T}, "args": Other("a Namespace")}, "epoch": 1}
    assert names(value) == ["a"]
    assert "under 'model.state_dict'" in notes(value)
    assert "epoch, model.args" in notes(value)


def test_a_training_run_under_one_name_is_opened_and_a_module_of_that_name_is_not() -> None:
    assert names({"app": {"model": {"a": T}, "optim": {"state": {"a": T}}}}) == ["a"]
    assert "under 'app.model'" in notes({"app": {"model": {"a": T}, "optim": {"state": {"a": T}}}})
    assert names({"encoder": {"model": {"a": T}, "norm": T}}) == ["encoder.model.a", "encoder.norm"]


def test_two_state_dicts_are_ambiguous_and_the_message_says_how_to_choose() -> None:
    with pytest.raises(StateDictFault, match="several state dicts in it: state_dict, model") as caught:
        find_state_dict({"model": {"a": T}, "state_dict": {"a": T}})
    assert 'torch.load(FILE, weights_only=True)["state_dict"]' in caught.value.hint


def test_weights_beside_the_state_dict_are_not_left_out() -> None:
    with pytest.raises(StateDictFault, match="under model there are tensors under vision, text"):
        find_state_dict({"model": {"a": T}, "vision": {"b": T}, "text": {"c": T}, "optimizer": {"d": T}})
    assert names({"model": {"a": T}, "lr": {"last": 0.1}, "loss": T}) == ["a"]


def test_a_wrapper_without_tensors_is_no_candidate() -> None:
    value = {"model": {"name": "x", "args": {}}, "state_dict": {"a": T}}
    assert names(value) == ["a"]
    assert names({"model": "name", "a": T}) == ["a"]


def test_what_is_no_tensor_is_said_by_name() -> None:
    odd = {"_extra_state": Other("bytes"), "version": 3, "list": [T, [T, {"x": T}]], ("t", 1): T, "_metadata": {}}
    value = {"a": T, **odd}
    assert names(value) == ["a"]
    assert "_extra_state, version, list (3 tensors), ('t', 1) (1 tensor), _metadata" in notes(value)


def test_long_lists_are_shortened() -> None:
    assert "n0, n1, n2, n3, n4 and 45 more" in notes({"a": T, **{f"n{number}": number for number in range(50)}})


def test_dicts_in_dicts_are_joined_and_that_is_said() -> None:
    value = {"encoder": {"a": T, "layers": {0: {"w": T}, 1: {"w": T}}}, "decoder": {"a": T, "note": "x"}}
    assert names(value) == ["encoder.a", "encoder.layers.0.w", "encoder.layers.1.w", "decoder.a"]
    assert "joined with dots: encoder, encoder.layers, encoder.layers.0, encoder.layers.1, decoder" in notes(value)
    assert "decoder.note" in notes(value)


def test_the_state_of_training_beside_nested_dicts_is_left_out() -> None:
    value = {"generator": {"a": T}, "optimizer_state": {"b": T}, "ema": {"a": T}, "lr_scheduler": {"x": T}}
    assert names(value) == ["generator.a"]
    assert "optimizer_state (1 tensor), ema (1 tensor), lr_scheduler (1 tensor)" in notes(value)


def test_names_that_meet_are_refused() -> None:
    for value in ({"a": {"b": T}, "a.b": T}, {"0": T, 0: T}):
        with pytest.raises(StateDictFault, match="two of its tensors would be called"):
            find_state_dict(value)


def test_a_dict_of_two_names_is_refused() -> None:
    shared = {"w": T}
    with pytest.raises(StateDictFault, match="one dict of it has two names, and the second is right"):
        find_state_dict({"left": shared, "right": shared})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "got a NoneType"),
        ([T, T], "got a list"),
        (T, "got a single tensor"),
        (Unreadable("sparse"), "got a single tensor"),
        ({}, r"a dict without tensors \(its keys: none\)"),
        ({"a": 1, "b\x1b": {}}, r"its keys: a, b\\x1b\)"),
        ({"optimizer": {"a": T}}, "a dict without tensors"),
        ({"list": [T]}, "a dict without tensors"),
    ],
)
def test_what_holds_no_state_dict(value: object, message: str) -> None:
    with pytest.raises(StateDictFault, match=f"expected a state dict, {message}|{message}"):
        find_state_dict(value)


def deep(depth: int, key: str = "d") -> dict[str, object]:
    value: dict[str, object] = {"w": T}
    for _ in range(depth):
        value = {key: value}
    return value


def test_nesting_has_a_limit() -> None:
    assert torch_state_dict.MAX_NESTING == 64
    assert names(deep(60)) == [".".join(["d"] * 60 + ["w"])]
    for value in (deep(70), deep(70, "model"), deep(100_000)):
        with pytest.raises(StateDictFault, match="deeper than 64 levels"):
            find_state_dict(value)


def test_joined_names_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few bytes of keys can make long names of many tensors."""
    monkeypatch.setattr(torch_state_dict, "MAX_JOINED", 10_000)
    value = {"x" * 1000: {str(number): T for number in range(20)}}
    with pytest.raises(StateDictFault, match="more than 10,000 characters"):
        find_state_dict(value)
    assert len(names({"x" * 100_000: T})) == 1
