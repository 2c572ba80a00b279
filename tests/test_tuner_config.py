import json
from dataclasses import replace

import numpy as np
import pytest
from peft import PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from peft_surgical.errors import ArchitectureError, SelectionError
from peft_surgical.localizing.results import Localization
from peft_surgical.localizing.scores import Scores
from peft_surgical.selection import Selection
from peft_surgical.sites import ModelShape, Slice
from peft_surgical.tuner import SurgicalIA3Config
from peft_surgical.tuner.resolve import _unite, resolve
from tests.tiny import FAMILIES, tiny_config, tiny_model

SPEC = {"side": "input", "ranges": [[0, 4]]}


def shape(family: str) -> ModelShape:
    return ModelShape.from_config(tiny_config(family))


def localization() -> Localization:
    neurons = {"L1.mlp": np.arange(48, dtype="float32")}
    scores = Scores({"L1.mlp": 2.0, "L0.head.1": 1.0}, neurons)
    return Localization("m", "float32", shape("llama"), "s", ("x",), {"x": scores}, (), 0)


def test_targets_are_derived():
    config = SurgicalIA3Config(selections={"a.b": SPEC, "a.c": {"side": "output", "ranges": [[1, 2]]}})
    assert config.target_modules == ["a.b", "a.c"]
    assert config.feedforward_modules == ["a.b"]
    assert config.peft_type == "SURGICAL_IA3"
    assert config.peft_type.value == "SURGICAL_IA3"


def test_contradicting_targets_are_refused():
    with pytest.raises(SelectionError, match="target_modules follows from selections"):
        SurgicalIA3Config(selections={"a.b": SPEC}, target_modules=["a.c"])
    with pytest.raises(SelectionError, match="feedforward_modules follows from selections"):
        SurgicalIA3Config(selections={"a.b": SPEC}, feedforward_modules=[])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs selections"),
        ({"components": []}, "needs selections"),
        ({"selections": {}}, "at least one module"),
        ({"selections": [SPEC]}, "at least one module"),
        ({"selections": {"a": SPEC}, "granularity": "row"}, "one of component, module, neuron, got 'row'"),
        ({"selections": {"a": SPEC}, "features": {"a": 3}}, r"\[0, 4\] of a ends beyond its 3 input features"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(SelectionError, match=message):
        SurgicalIA3Config(**arguments)


@pytest.mark.parametrize(
    ("neurons", "message"),
    [
        ([3], r"must map MLPs to ranges, not \[3\]"),
        ({"L0.mlp": 5}, "the neurons of L0.mlp must be a non-empty list of .*, got 5"),
        ({"L0.mlp": []}, r"must be a non-empty list of .*, got \[\]"),
        ({"L0.mlp": [[0.5, 3]]}, r"must be two integers .*, got \[0.5, 3\]"),
        ({"L0.mlp": [[3, 3]]}, r"got \[3, 3\]"),
        ({"L0.mlp": [[0, 4], [2, 6]]}, r"\[2, 6\] begins before 4"),
        ({"L1.mlp": [[0, 4]]}, "neurons are given for 'L1.mlp', which is not a selected MLP"),
        ({"L0.head.1": [[0, 4]]}, "neurons are given for 'L0.head.1', which is not a selected MLP"),
    ],
)
def test_malformed_neurons_are_refused_before_there_is_a_model(neurons, message):
    with pytest.raises(SelectionError, match=message):
        SurgicalIA3Config(components=["L0.mlp", "L0.head.1"], neurons=neurons)


def test_json_round_trip(tmp_path):
    config = SurgicalIA3Config(selections={"a.b": SPEC}, features={"a.b": 8}, task_type="CAUSAL_LM", revision="abc")
    config.save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(str(tmp_path)) == config
    assert SurgicalIA3Config.from_pretrained(str(tmp_path)) == config
    json.loads((tmp_path / "adapter_config.json").read_text())


def test_files_do_not_depend_on_hash_order(tmp_path):
    names = [f"m.{i}" for i in range(30)]
    SurgicalIA3Config(selections=dict.fromkeys(names, SPEC)).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == names


def test_registration_survives_a_second_import():
    import importlib

    import peft_surgical.tuner

    before = dict(PEFT_TYPE_TO_CONFIG_MAPPING)
    importlib.reload(peft_surgical.tuner)
    assert before == PEFT_TYPE_TO_CONFIG_MAPPING
    assert PEFT_TYPE_TO_CONFIG_MAPPING["SURGICAL_IA3"] is SurgicalIA3Config


def test_component_granularity_is_z_and_post():
    found = resolve(["L0.head.1", "L0.head.2", "L1.mlp"], shape("llama"))
    assert {name: c.to_spec() for name, c in found.items()} == {
        "model.layers.0.self_attn.o_proj": {"side": "input", "ranges": [[8, 24]]},
        "model.layers.1.mlp.down_proj": {"side": "input", "ranges": [[0, 48]]},
    }


def test_shared_value_heads_are_taken_once():
    found = resolve(["L0.head.0", "L0.head.1", "L0.head.3"], shape("llama"), projections=["v"])
    assert found["model.layers.0.self_attn.v_proj"].to_spec() == {"side": "output", "ranges": [[0, 16]]}


def test_module_granularity_is_the_papers():
    found = resolve(["L1.mlp", "L2.head.0"], shape("phi3"), "module")
    assert {name: (c.side, c.ranges) for name, c in found.items()} == {
        "model.layers.1.mlp.gate_up_proj": ("output", ((0, 96),)),
        "model.layers.1.mlp.down_proj": ("input", ((0, 48),)),
        "model.layers.2.self_attn.qkv_proj": ("output", ((0, 64),)),
        "model.layers.2.self_attn.o_proj": ("output", ((0, 32),)),
    }


def test_fused_projections():
    found = resolve(["L0.mlp", "L0.head.2"], shape("phi3"), projections=["v", "pre_linear"])
    assert {name: (c.side, c.ranges) for name, c in found.items()} == {
        "model.layers.0.mlp.gate_up_proj": ("output", ((48, 96),)),
        "model.layers.0.self_attn.qkv_proj": ("output", ((56, 64),)),
    }
    # The factor that is not gated stands behind the 48 rows of the gate.
    some = resolve(["L0.mlp"], shape("phi3"), projections=["pre_linear"], neurons={"L0.mlp": [[3, 5]]})
    assert some["model.layers.0.mlp.gate_up_proj"].ranges == ((51, 53),)


def test_a_head_is_scaled_at_each_of_several_projections():
    found = resolve(["L0.head.1"], shape("llama"), projections=["z", "v"])
    assert {name: (c.side, c.ranges) for name, c in found.items()} == {
        "model.layers.0.self_attn.o_proj": ("input", ((8, 16),)),
        "model.layers.0.self_attn.v_proj": ("output", ((0, 8),)),
    }


def test_neuron_granularity():
    found = resolve(["L1.mlp", "L0.head.0"], shape("llama"), "neuron", neurons={"L1.mlp": [[3, 4], [9, 11]]})
    assert found["model.layers.1.mlp.down_proj"].ranges == ((3, 4), (9, 11))
    assert found["model.layers.0.self_attn.o_proj"].ranges == ((0, 8),)


@pytest.mark.parametrize(
    ("components", "options", "message"),
    [
        (["L3.mlp"], {}, "3 layers"),
        (["L0.head.4"], {}, "4 heads"),
        (["nonsense"], {}, "'nonsense' is not a component"),
        (["L0.mlp"], {"projections": ["x"]}, "'x' is not one of"),
        (["L0.mlp"], {"projections": ["z"]}, "L0.mlp needs one of the projections post"),
        (["L0.mlp"], {"granularity": "neuron"}, "needs the neurons of L0.mlp"),
        (["L0.mlp"], {"neurons": {"L0.mlp": [[0, 4]]}, "projections": ["in"]}, "no neurons; choose from post, pre"),
        (["L0.mlp"], {"neurons": {"L0.mlp": [[40, 49]]}}, r"\[40, 49\] goes beyond the neurons of L0.mlp, .* 48"),
        (["L0.mlp"], {"neurons": {"L1.mlp": [[0, 4]]}}, "neurons are given for 'L1.mlp', which is not a selected MLP"),
        (["L0.mlp"], {"neurons": {"L0.mlp": [[0, 4], [3, 6]]}}, r"\[3, 6\] begins before 4"),
    ],
)
def test_what_the_model_does_not_have_is_refused(components, options, message):
    with pytest.raises(SelectionError, match=message):
        resolve(components, shape("llama"), **options)


def test_both_sides_of_one_module_are_refused():
    with pytest.raises(SelectionError, match=r"a\.b cannot .* sides: L0\.mlp needs its input, L1\.mlp its output"):
        _unite([("L0.mlp", Slice("a.b", "input", 0, 1)), ("L1.mlp", Slice("a.b", "output", 0, 1))])


def test_from_selection_with_and_without_a_shape():
    names = ("L1.mlp", "L0.head.1")
    late = SurgicalIA3Config.from_localization(Selection.from_components(*names))
    assert late.selections is None
    late.resolve(tiny_config("llama"))
    early = SurgicalIA3Config.from_localization(Selection(names, shape("llama")))
    assert early == late
    assert early.components == list(names)


def test_top_takes_the_best_of_a_selection():
    config = SurgicalIA3Config.from_localization(Selection.from_components("L1.mlp", "L0.head.1"), top=1)
    assert config.components == ["L1.mlp"]


def test_projections_choose_nothing_where_whole_modules_are_scaled():
    # These two read one key head, so at `k` the second would be passed over.
    scores = Scores({"L0.head.0": 2.0, "L0.head.1": 1.0}, {})
    heads = Localization("m", "float32", shape("llama"), "s", ("x",), {"x": scores}, (), 0)
    assert SurgicalIA3Config.from_localization(heads, 2, projections="k").components == ["L0.head.0"]
    whole = SurgicalIA3Config.from_localization(heads, 2, "module", projections="k")
    assert whole.components == ["L0.head.0", "L0.head.1"]


def test_whole_modules_are_scaled_where_heads_are_wider_than_the_stream():
    # The output projection reads 4 heads of 16 and is scaled where it writes 32.
    config = SurgicalIA3Config(components=["L0.head.1"], granularity="module")
    get_peft_model(tiny_model("llama", head_dim=16), config)
    assert config.features["model.layers.0.self_attn.o_proj"] == 32


def test_one_projection_may_be_text():
    for source in (Selection.from_components("L1.mlp"), Selection(("L1.mlp",), shape("llama"))):
        config = SurgicalIA3Config.from_localization(source, projections="in")
        assert config == SurgicalIA3Config.from_localization(source, projections=["in"])
    with pytest.raises(SelectionError, match="the projection 'zq' is not one of"):
        SurgicalIA3Config.from_localization(Selection(("L1.head.0",), shape("llama")), projections="zq")


@pytest.mark.parametrize("projections", [5, True, ["z", ["post"]], [None]])
def test_projections_that_are_no_names_are_refused(projections):
    for source in (Selection.from_components("L1.mlp"), Selection(("L1.mlp",), shape("llama")), localization()):
        with pytest.raises(SelectionError, match="projections must be a list of names, got "):
            SurgicalIA3Config.from_localization(source, projections=projections)


def test_no_projections_are_told_as_none():
    for source in (Selection(("L1.mlp",), shape("llama")), localization()):
        with pytest.raises(SelectionError, match=r"needs one of the projections [^;]*; got none\.$"):
            SurgicalIA3Config.from_localization(source, projections=[])


@pytest.mark.parametrize("top", [-1, 0, "1", 1.0, True])
def test_a_top_that_is_no_positive_whole_number_is_refused(top):
    for source in (Selection.from_components("L1.mlp", "L0.head.1"), localization()):
        with pytest.raises(SelectionError, match=f"top must be a whole number of 1 or more; got {top!r}"):
            SurgicalIA3Config.from_localization(source, top=top)


@pytest.mark.parametrize("source", ["L2.mlp", None, ["L2.mlp"]])
def test_what_is_neither_a_localization_nor_a_selection_is_refused(source):
    with pytest.raises(SelectionError, match="is made from a Localization or a Selection"):
        SurgicalIA3Config.from_localization(source)


def test_whole_modules_have_no_neurons_to_choose():
    neurons = {"L1.mlp": ((3, 5),)}
    for selection in (Selection(("L1.mlp",), shape("llama"), neurons), Selection(("L1.mlp",), None, neurons)):
        with pytest.raises(SelectionError, match="'module' scales whole modules, and neurons are chosen"):
            SurgicalIA3Config.from_localization(selection, granularity="module")
    with pytest.raises(SelectionError, match="'module' scales whole modules, and neurons are chosen"):
        SurgicalIA3Config.from_localization(localization(), 1, granularity="module", neurons=2)
    with pytest.raises(SelectionError, match="'module' scales whole modules, and neurons are chosen"):
        resolve(["L1.mlp"], shape("llama"), "module", neurons=neurons)
    # What is chosen of a component that is left out is nobody's.
    both = Selection(("L0.mlp", "L1.mlp"), shape("llama"), neurons)
    assert SurgicalIA3Config.from_localization(both, 1, granularity="module").components == ["L0.mlp"]


def test_neurons_of_a_selection_are_honoured():
    selection = Selection(("L1.mlp",), shape("llama"), {"L1.mlp": ((3, 5),)})
    for granularity in ("component", "neuron"):
        config = SurgicalIA3Config.from_localization(selection, granularity=granularity)
        assert config.coordinates["model.layers.1.mlp.down_proj"].ranges == ((3, 5),)


def test_neuron_granularity_needs_a_number():
    selection = Selection.from_components("L1.mlp")
    with pytest.raises(SelectionError, match="needs neurons"):
        SurgicalIA3Config.from_localization(selection, granularity="neuron")
    with pytest.raises(SelectionError, match="no neuron scores"):
        SurgicalIA3Config.from_localization(selection, granularity="neuron", neurons=3)


def test_heads_have_no_neurons_to_choose():
    heads = Selection.from_components("L1.head.0", shape=shape("llama"))
    mixed = Selection.from_components("L1.head.0", "L1.mlp", shape=shape("llama"))
    expected = SurgicalIA3Config.from_localization(heads).coordinates
    for neurons in (None, 5):
        for selection, top in ((heads, None), (mixed, 1)):
            config = SurgicalIA3Config.from_localization(selection, top, granularity="neuron", neurons=neurons)
            assert config.coordinates == expected
        with pytest.raises(SelectionError, match=r"needs neurons|no neuron scores"):
            SurgicalIA3Config.from_localization(mixed, granularity="neuron", neurons=neurons)


def test_numpy_s_whole_numbers_are_whole_numbers(tmp_path):
    three = np.int64(3)
    config = SurgicalIA3Config.from_localization(localization(), three, granularity="neuron", neurons=np.int32(2))
    assert config == SurgicalIA3Config.from_localization(localization(), 3, granularity="neuron", neurons=2)
    assert localization().top(three, heads=np.int8(1)) == localization().top(3, heads=1)
    selection = Selection(("L1.mlp",), shape("llama"), {"L1.mlp": [[three, np.int64(5)]]})
    assert selection.neurons == {"L1.mlp": ((3, 5),)}
    selection.save(tmp_path / "selection.json")
    for wrong in (np.bool_(True), np.float64(3), True):
        with pytest.raises(SelectionError, match="must be a whole number"):
            localization().top(wrong)


def test_unknown_architecture_says_how_to_teach_it():
    with pytest.raises(ArchitectureError, match="register_architecture"):
        SurgicalIA3Config(components=["L0.mlp"]).resolve({"model_type": "nobody"})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("granularity", ["component", "module"])
def test_every_family_has_the_modules_that_its_components_name(family, granularity):
    model = tiny_model(family)
    found = resolve(["L0.head.1", "L1.mlp"], shape(family), granularity)
    for name in found:
        model.get_submodule(name)


def test_a_configuration_that_was_resolved_for_one_model_is_refused_by_one_with_other_heads():
    config = SurgicalIA3Config(components=["L0.head.1"])
    get_peft_model(tiny_model("llama"), config)
    get_peft_model(tiny_model("llama"), config)
    with pytest.raises(SelectionError, match="the configuration was resolved for another model, in which"):
        get_peft_model(tiny_model("llama", num_attention_heads=8, num_key_value_heads=2), config)
    config = SurgicalIA3Config(components=["L0.head.3"])
    get_peft_model(tiny_model("llama"), config)
    with pytest.raises(SelectionError, match=r"L0\.head\.3"):
        get_peft_model(tiny_model("llama", num_attention_heads=2, num_key_value_heads=2), config)


@pytest.mark.parametrize("anew", [True, False])
def test_selections_that_were_changed_by_hand_are_taken_as_they_are(anew):
    config = SurgicalIA3Config(components=["L0.mlp", "L1.mlp"])
    config.resolve(tiny_config("llama"))
    narrowed = {name: {"side": "input", "ranges": [[0, 10]]} for name in config.selections}
    mine = SurgicalIA3Config(components=config.components, selections=narrowed) if anew else config
    mine.selections = narrowed
    with pytest.warns(
        UserWarning, match=r"the selections are used, and they are not what 'L0\.mlp, L1\.mlp' are in this model;"
    ):
        model = get_peft_model(tiny_model("llama"), mine)
    assert model.peft_config["default"].selections == narrowed


def test_selections_that_replace_takes_over_are_told(recwarn):
    config = SurgicalIA3Config(components=["L0.head.1"])
    config.resolve(tiny_config("llama"))
    get_peft_model(tiny_model("llama"), replace(config, task_type="CAUSAL_LM"))
    assert not [warning for warning in recwarn if "selections" in str(warning.message)]
    other = {"components": ["L1.mlp"]}
    with pytest.warns(UserWarning, match=r"they are not what 'L1\.mlp' are"):
        get_peft_model(tiny_model("llama"), replace(config, **other))
    anew = replace(config, **other, selections=None)
    model = get_peft_model(tiny_model("llama"), anew)
    assert list(model.peft_config["default"].selections) == ["model.layers.1.mlp.down_proj"]


@pytest.mark.parametrize("name", ["target_modules", "feedforward_modules"])
def test_modules_named_beside_components_are_refused(name):
    with pytest.raises(SelectionError, match=rf"{name} follows from components .* got \['q_proj', 'v_proj'\]\."):
        SurgicalIA3Config(components=["L0.mlp"], **{name: ["v_proj", "q_proj"]})


def test_what_is_derived_follows_selections_that_were_changed_by_hand(tmp_path):
    whole = {"side": "input", "ranges": [[0, 4]]}
    config = SurgicalIA3Config(selections={"model.layers.0.mlp.down_proj": whole})
    config.selections = {"model.layers.1.mlp.down_proj": whole}
    model = get_peft_model(tiny_model("llama"), config)
    assert config.target_modules == config.feedforward_modules == ["model.layers.1.mlp.down_proj"]
    model.save_pretrained(tmp_path)
    assert PeftModel.from_pretrained(tiny_model("llama"), tmp_path).peft_config["default"].selections == {
        "model.layers.1.mlp.down_proj": whole
    }


def test_no_module_is_of_no_width():
    with pytest.raises(SelectionError, match="features must map module names to widths"):
        SurgicalIA3Config(selections={"a.b": SPEC}, features={"a.c": 0})


def test_neurons_that_no_head_has_are_refused_where_whole_modules_are_scaled():
    scores = Scores({"L0.head.1": 1.0}, {"L1.mlp": np.arange(48, dtype="float32")})
    heads = Localization("m", "float32", shape("llama"), "s", ("x",), {"x": scores}, (), 0)
    with pytest.raises(SelectionError, match="scales whole modules, and neurons are chosen"):
        SurgicalIA3Config.from_localization(heads, 1, granularity="module", neurons=2)


def test_what_a_selection_of_one_shape_was_resolved_to_does_not_go_on_another():
    config = SurgicalIA3Config.from_localization(Selection(("L0.head.1",), shape("llama")))
    with pytest.raises(SelectionError, match="was resolved for another model"):
        get_peft_model(tiny_model("llama", num_attention_heads=8, num_key_value_heads=2), config)
