from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_surgical.adapters.algebra import difference, inverse, power, product
from peft_surgical.adapters.bases import same_model
from peft_surgical.adapters.edits import Edit, ModuleScale
from peft_surgical.errors import AdapterError
from peft_surgical.merging import merge
from peft_surgical.stacking import stack
from peft_surgical.tuner.coordinates import Coordinates
from tests.tiny import tiny_model

ULP = 2.0**-23


def edit(scales, ranges=((0, 2),), side="input", module="m", width=8, **fields):
    return Edit({module: ModuleScale(Coordinates(side, ranges), torch.tensor(scales), width)}, **fields)


def dense(found, module="m", width=8):
    return found.modules[module].dense(width)


SCALES = st.lists(st.floats(0.125, 8, width=32), min_size=3, max_size=3)
EDITS = st.builds(edit, SCALES, st.sampled_from([((0, 3),), ((1, 2), (4, 6)), ((5, 8),)]))


def test_hand_worked_product():
    found = product([edit([2.0, 3.0]), edit([5.0, 7.0], ((1, 3),))])
    assert dense(found).tolist() == [2, 15, 7, 1, 1, 1, 1, 1]
    assert found.modules["m"].coordinates.ranges == ((0, 3),)


def test_a_module_that_one_edit_lacks_counts_as_one():
    found = product([edit([2.0, 3.0]), edit([5.0, 7.0], module="n", side="output")])
    assert dense(found).tolist()[:2] == [2, 3]
    assert dense(found, "n").tolist()[:2] == [5, 7]
    assert found.n_scales == 4


@settings(max_examples=50, deadline=None)
@given(EDITS, EDITS, EDITS)
def test_product_is_commutative_exactly_and_associative_to_a_rounding(a, b, c):
    assert torch.equal(dense(product([a, b])), dense(product([b, a])))
    left, right = dense(product([product([a, b]), c])), dense(product([a, product([b, c])]))
    torch.testing.assert_close(left, right, rtol=2 * ULP, atol=0)


@settings(max_examples=50, deadline=None)
@given(EDITS, EDITS)
def test_the_laws_of_a_group(a, b):
    one = dense(power(a, 0))
    assert torch.equal(one, torch.ones(8))
    assert torch.equal(dense(power(a, 1)), dense(a))
    assert torch.equal(dense(inverse(a)), 1 / dense(a))
    torch.testing.assert_close(dense(product([a, inverse(a)])), one, rtol=2 * ULP, atol=0)
    torch.testing.assert_close(dense(inverse(inverse(a))), dense(a), rtol=2 * ULP, atol=0)
    torch.testing.assert_close(dense(product([b, difference(a, b)])), dense(a), rtol=4 * ULP, atol=0)
    torch.testing.assert_close(dense(power(power(a, 0.5), 2)), dense(a), rtol=4 * ULP, atol=0)
    torch.testing.assert_close(
        dense(power(product([a, b]), 0.3)), dense(product([power(a, 0.3), power(b, 0.3)])), rtol=8 * ULP, atol=0
    )


def test_power_is_a_dial():
    strengths = [float(dense(power(edit([4.0, 0.25]), t))[0]) for t in (0, 0.25, 0.5, 1, 2)]
    assert strengths == pytest.approx([1, 2**0.5, 2, 4, 16])
    scales = torch.linspace(0.5, 2, 1000)
    exact = torch.tensor([scale**0.3 for scale in scales.tolist()])
    assert torch.equal(power(edit(scales.tolist(), ((0, 1000),), width=1000), 0.3).modules["m"].scale, exact)


def test_what_has_no_power_is_refused():
    with pytest.raises(AdapterError, match="scales m by 0 somewhere"):
        inverse(edit([0.0, 1.0]))
    with pytest.raises(AdapterError, match=r"negative number, which has no power 0\.5"):
        power(edit([-1.0, 1.0]), 0.5)
    assert [dense(power(edit([-2.0, 1.0]), t)).tolist()[0] for t in (2, 3, -1)] == [4, -8, -0.5]
    with pytest.raises(AdapterError, match="finite number"):
        power(edit([1.0, 1.0]), float("nan"))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (edit([1.0, 2.0], side="output"), "m cannot be scaled on both sides: the edit scales its input"),
        (edit([1.0, 2.0], width=9), "m has 8 features in the edit and 9"),
        (edit([1.0, 2.0], base_model="b"), "different base models: .* for a, .* for b"),
        (edit([1.0, 2.0], base_model="a", revision="2"), "different revisions"),
        # As are branches, unlike folders that end in one name.
        (edit([1.0, 2.0], base_model="a", revision="mine/1"), "different revisions .* for 1, .* for mine/1"),
    ],
)
def test_edits_that_do_not_fit_together_are_refused(other, message):
    with pytest.raises(AdapterError, match=message):
        product([edit([1.0, 2.0], base_model="a", revision="1"), other])
    with pytest.raises(AdapterError, match=message):
        product([*[edit([1.0, 2.0], base_model="a", revision="1")] * 2, other])


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("model", "./model/", True),
        ("model", "/elsewhere/Model", True),
        ("folder/model", "/elsewhere/model", True),
        (".", "link", True),
        ("hub/model", "hub/Model", True),
        ("gpt2", "openai-community/gpt2", True),
        ("hub/model", "/root/.cache/huggingface/hub/models--hub--model/snapshots/abcdef", True),
        ("gpt2", r"C:\hub\models--gpt2\snapshots\abc", True),
        ("hub/model", "/hub/models--others--model/snapshots/abcdef", False),
        ("/hub/models--a--model/snapshots/abcdef", "/hub/models--b--model/snapshots/abcdef", False),
        ("model", "/elsewhere/other", False),
        ("hub/model", "others/model", False),
        ("../a/model", "../b/other", False),
    ],
)
def test_a_base_model_by_another_path_is_the_same(one, other, same, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    assert same_model(one, other) is same_model(other, one) is same
    if same:
        assert product([edit([1.0, 2.0], base_model=one), edit([1.0, 2.0], base_model=other)]).base_model == one


def test_a_base_model_that_is_not_known_goes_with_any():
    found = product([edit([1.0, 2.0]), edit([1.0, 2.0], base_model="a"), edit([1.0, 2.0])])
    assert found.base_model == "a"


def test_what_one_edit_alone_says_of_its_base_holds_for_the_product():
    said = {
        "revision": "1",
        "fan_in_fan_out": True,
        "task_type": "CAUSAL_LM",
        "auto_mapping": {"base_model_class": "M"},
    }
    for first, second in ((said, {}), ({}, said)):
        found = product([edit([1.0, 2.0], **first), edit([1.0, 2.0], **second)])
        assert {name: getattr(found, name) for name in said} == said
    for widths in ((8, None), (None, 8)):
        assert product([edit([1.0, 2.0], width=width) for width in widths]).modules["m"].width == 8


def test_of_two_that_do_not_fit_the_first_is_the_one_that_scales_the_module():
    scales = [1.0, 2.0]
    one, two, three = edit(scales, module="n", name="a"), edit(scales, name="b"), edit(scales, side="output", name="c")
    with pytest.raises(AdapterError, match="both sides: b scales its input, c its output"):
        product([one, two, three])


def test_a_product_holds_the_weights_of_the_base_that_any_of_its_edits_holds():
    head, other = {"head.weight": torch.ones(2)}, {"other.weight": torch.zeros(3)}
    for every in ((head, {}, other), ({}, other, head)):
        found = product(
            [edit([1.0, 2.0], base_weights=held, name=name) for name, held in zip("abc", every, strict=True)]
        )
        assert found.base_weights == {**head, **other}
        assert found.name == "a * b * c"


def test_nothing_to_multiply():
    with pytest.raises(AdapterError, match="nothing to multiply"):
        product([])


def test_folders_are_read(tmp_path):
    edit([1.5, 0.75]).save(tmp_path / "a")
    power(tmp_path / "a", 2).save(tmp_path / "b")
    assert dense(Edit.load(tmp_path / "b")).tolist()[:2] == [2.25, 0.5625]
    assert difference(tmp_path / "b", tmp_path / "a").modules["m"].scale.tolist() == [1.5, 0.75]


def test_one_edit_may_be_given_alone():
    assert product(edit([2.0, 3.0])) == edit([2.0, 3.0])
    assert product({"a": edit([2.0, 3.0]), "b": edit([3.0, 1.0])}.values()) == edit([6.0, 3.0])


def test_edits_are_equal_when_their_scales_are():
    assert edit([2.0, 3.0]) == edit([2.0, 3.0], name="another")
    assert edit([2.0, 3.0]) != edit([2.0, 4.0])
    assert edit([2.0, 3.0]) != edit([2.0, 3.0], ((1, 3),))
    assert edit([2.0, 3.0]) != edit([2.0, 3.0], width=9)


@pytest.mark.parametrize("function", [lambda: power(edit([2.0, 3.0]), 2000), lambda: product([edit([1e30, 1.0])] * 2)])
def test_what_float32_cannot_hold_is_refused(function):
    with pytest.raises(AdapterError, match="scales m by more than float32 can hold"):
        function()


def test_what_a_prompt_shows_is_one_short_line():
    assert repr(edit([2.0, 3.0])) == "Edit(2 scales on 1 modules)"
    assert repr(edit([2.0, 3.0], base_model="a/b")) == "Edit(2 scales on 1 modules of 'a/b')"


@pytest.mark.parametrize("given", [None, 1, [None]])
def test_what_is_no_adapter_is_refused(given, tmp_path):
    for make in (stack, partial(merge, tiny_model("llama"))):
        with pytest.raises(AdapterError, match="an adapter is a folder or what was loaded from one, not "):
            make(given, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_edit_without_scales_is_refused(tmp_path):
    for make in (stack, partial(merge, tiny_model("llama"))):
        with pytest.raises(AdapterError, match=r"holds no scales\."):
            make(Edit({}), tmp_path / "out")


@pytest.mark.parametrize("t", ["half", None, [1], 10**400], ids=["text", "none", "list", "huge"])
def test_a_power_is_a_number(t):
    with pytest.raises(AdapterError, match="the power of an edit must be a finite number, got "):
        power(edit([2.0, 1.0]), t)


def test_none_of_an_edit_is_no_edit_be_a_scale_of_it_0():
    assert power(edit([0.0, 3.0]), 0).modules["m"].scale.tolist() == [1.0, 1.0]
