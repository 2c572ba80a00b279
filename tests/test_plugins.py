import json
import sys
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from peft_surgical import plugins, scorers
from peft_surgical.errors import ScorerError
from peft_surgical.hookspecs import hookimpl
from peft_surgical.localization import localize
from peft_surgical.localizing.context import MLPScores
from peft_surgical.localizing.runs import sites_of
from peft_surgical.localizing.scores import check_scores
from peft_surgical.localizing.specs import ScorerSpec
from peft_surgical.plugins import PluginWarning, load_scorers
from peft_surgical.sites import ModelShape

from .command_line import run
from .localizing import capital, word_tokenizer
from .tiny import tiny_model

# One a file, called as the file is.
BUILT_IN = {path.stem for path in Path(scorers.__path__[0]).glob("*.py")} - {"__init__"}


@dataclass
class Distribution:
    name: str
    version: str = "1.0"


@dataclass
class EntryPoint:
    name: str
    plugin: object
    dist: Distribution | None
    value: str = "somewhere"

    @property
    def module(self):
        return self.value

    def load(self):
        if isinstance(self.plugin, Exception):
            raise self.plugin
        return self.plugin


def module(**scorers):
    plugin = ModuleType("a_plugin")

    def register_scorers(register):
        for name, scorer in scorers.items():
            register(name, scorer)

    plugin.register_scorers = hookimpl(register_scorers)
    return plugin


def misspelled():
    plugin = ModuleType("misspelled")
    plugin.register_scores = hookimpl(lambda register: None)
    plugin.register_scores.__name__ = "register_scores"
    return plugin


def listed():
    plugin = ModuleType("listed")
    plugin.register_scorers = hookimpl(lambda register: register(["x"], good))
    return plugin


def twice():
    plugin = ModuleType("twice")
    plugin.register_scorers = hookimpl(lambda register: (register("one", good), register("one", good))[:0])
    return plugin


def wrong_arguments():
    plugin = ModuleType("wrong_arguments")

    def register_scorers(registry):
        pass

    plugin.register_scorers = hookimpl(register_scorers)
    return plugin


def good(context):
    """Reads nothing.

    More about it.
    """
    return {site: torch.ones(site.size) for site in context.sites}


def registers(register):
    register("good", good)


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("nothing to say")


@pytest.fixture
def install(monkeypatch):
    def do(**named):
        points = [EntryPoint(name, plugin, Distribution(f"dist-{name}")) for name, plugin in named.items()]
        monkeypatch.setattr(plugins.metadata, "entry_points", lambda group: points if group == "peft_surgical" else [])

    return do


def test_built_in_scorers_come_through_the_hook(install):
    install()
    found = load_scorers().scorers
    assert found.keys() == BUILT_IN
    assert {"activation_magnitude", "attribution", "gradient_norm", "logit_drop", "random"} < BUILT_IN
    assert all(item.name == name for name, item in found.items())
    assert all(item.reads.endswith(".") and item.distribution == "peft-surgical" for item in found.values())


def test_an_option_that_is_infinite_is_listed_as_it_is_given(install):
    def capped(context, *, cap: float = float("inf"), floor: float = 0.5, but: object = frozenset()):
        """Reads nothing."""

    install(extra=module(capped=capped))
    listed = {item["name"]: item for item in json.loads(run("scorers", "--json").stdout)}
    assert listed["capped"]["options"] == {"cap": "inf", "floor": 0.5}
    assert ScorerSpec.parse("capped:cap=inf", load_scorers()).options == {"cap": float("inf")}


def test_what_a_plugin_prints_is_not_in_the_list(install):
    def register_scorers(register):
        print("hello")
        register("good", good)

    plugin = ModuleType("talks")
    plugin.register_scorers = hookimpl(register_scorers)
    install(talks=plugin)
    result = run("scorers", "--json")
    assert "good" in {item["name"] for item in json.loads(result.stdout)}
    assert result.stderr == "hello\n"
    assert "hello" not in run("scorers").stdout


def test_a_plugins_scorer_is_listed_with_its_distribution(install):
    install(extra=module(good=good))
    item = load_scorers()["good"]
    assert (item.reads, item.distribution) == ("Reads nothing.", "dist-extra 1.0")


@pytest.mark.parametrize(
    ("plugin", "fault"),
    [
        (ImportError("no module named numpie"), "ImportError: no module named numpie"),
        (SyntaxError("oops"), "SyntaxError: oops"),
        (misspelled(), "unknown hook 'register_scores'"),
        (wrong_arguments(), "registry"),
        (ModuleType("empty"), "implements no hook"),
        (module(attribution=good), "the scorer name 'attribution' is taken by peft-surgical"),
        (module(another=good, random=good), "the scorer name 'random' is taken"),
        (module(**{"a b": good}), "letters, digits and underscores"),
        (listed(), "letters, digits and underscores, unlike ['x']"),
        (twice(), "the scorer name 'one' is taken by dist-broken 1.0"),
        (module(number=3), "is not a function"),
        (module(needs=lambda context, *, option: {}), "options only with a default"),
        (module(where=lambda context, *, sites="": {}), "the scorer 'where' has an option 'sites'"),
        (None, "it names None, not a module."),
        (module(), "it registers no scorer; call `register(name, scorer)`"),
        (hookimpl(registers), "it names the function that registers scorers; name the module"),
        (
            module(p=lambda context, power: {}),
            "the scorer 'p' takes power beside the context: options must come after",
        ),
        (module(p=lambda context, power=2: {}), "options must come after a `*`, as in (context, *, power=...)"),
        (module(p=lambda *, context=None: {}), "must take a context"),
        (module(p=lambda **context: {}), "must take a context"),
        (Unspeakable("x"), "was left out: Unspeakable: Unspeakable"),
    ],
)
def test_a_faulty_plugin_is_left_out_by_name_and_the_others_go_on(install, plugin, fault):
    install(broken=plugin, fine=module(good=good))
    with pytest.warns(PluginWarning) as caught:
        catalogue = load_scorers()
    assert set(catalogue.scorers) == {*BUILT_IN, "good"}
    [text] = catalogue.faults
    assert text.startswith("the plugin 'broken' of dist-broken 1.0 was left out: ")
    assert fault in text
    assert [str(warning.message) for warning in caught] == [text]


def test_entry_points_may_be_called_as_scorers_and_as_one_another(monkeypatch, recwarn):
    points = [
        EntryPoint("attribution", module(mine=good), Distribution("one")),
        EntryPoint("scorer", module(ours=good), Distribution("two")),
        EntryPoint("scorer", module(theirs=good), Distribution("three")),
    ]
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda group: points)
    assert set(load_scorers().scorers) == {*BUILT_IN, "mine", "ours", "theirs"}
    assert not recwarn


def test_a_module_under_two_names_is_a_plugin_once(install):
    same = module(good=good)
    install(one=same, two=same)
    with pytest.warns(
        PluginWarning, match=r"'two' of dist-two 1\.0 was left out: what it names is registered already"
    ):
        catalogue = load_scorers()
    assert catalogue["good"].distribution == "dist-one 1.0"
    [fault] = catalogue.faults
    assert "\n" not in fault


def test_the_file_of_an_entry_point(monkeypatch):
    plugin = module(good=good)
    plugin.__file__ = "/somewhere/my_plug.py"
    monkeypatch.setitem(sys.modules, "my_plug", plugin)
    points = [
        metadata.EntryPoint(f"{n}", value, "peft_surgical") for n, value in enumerate(["my_plug [x]", "my plug!"])
    ]
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda group: points)
    with pytest.warns(PluginWarning, match="the plugin '1' of my plug! was left out"):
        catalogue = load_scorers()
    assert [found.file for found in catalogue.plugins] == ["/somewhere/my_plug.py", None]


def test_what_a_partial_reads(install):
    described = partial(good)
    described.__doc__ = "Its own."
    install(theirs=module(half=partial(good), described=described))
    found = load_scorers()
    assert (found["half"].reads, found["described"].reads) == ("Reads nothing.", "Its own.")


def test_two_plugins_with_one_name_clash(install):
    install(one=module(good=good), two=module(good=good))
    with pytest.warns(PluginWarning, match="'two' .* taken by dist-one 1.0"):
        assert load_scorers()["good"].distribution == "dist-one 1.0"


def test_an_unknown_scorer_is_refused_with_what_there_is_and_what_was_left_out(install):
    install(broken=ImportError("no"))
    with pytest.warns(PluginWarning):
        catalogue = load_scorers()
    with pytest.raises(ScorerError, match=r"no scorer 'mine'; installed are activation_magnitude, .*broken"):
        catalogue["mine"]


class UnspeakableError(ScorerError, Unspeakable):
    __str__ = Unspeakable.__str__


def raises_unspeakable(context):
    raise Unspeakable


def raises_unspeakable_error(context):
    raise UnspeakableError


FAULTS = {
    "raises": (lambda context: 1 / 0, "failed with ZeroDivisionError"),
    "nothing": (lambda context: None, "must return a mapping of sites to scores, not None"),
    "empty": (lambda context: {}, "must return a mapping"),
    "none": (lambda context: {}, r"scored none of the sites \(z\+post\)"),
    "shape": (
        lambda context: {context.sites[0]: torch.ones(3)},
        r"shape \[3\] for blocks.0.attn.hook_z; it must be \[4\]",
    ),
    "axes": (lambda context: {context.sites[1]: torch.ones(1, 48)}, r"shape \[1, 48\] for blocks.0.mlp.hook_post"),
    "nan": (lambda context: {context.sites[0]: [1, 2, float("nan"), 4]}, "hook_z that is not a finite number"),
    "inf": (lambda context: {context.sites[1]: MLPScores(float("inf"), torch.ones(48))}, "not a finite number"),
    "site": (lambda context: {"blocks.9.attn.hook_z": torch.ones(4)}, "'blocks.9.attn.hook_z', which is not one of"),
    "text": (lambda context: {context.sites[0]: "high"}, "no array of numbers"),
    "complex": (lambda context: {context.sites[0]: torch.ones(4) * 1j}, "complex numbers for blocks.0.attn.hook_z"),
    "complex list": (lambda context: {context.sites[0]: [np.complex64(1j)] * 4}, "complex numbers for blocks"),
    "complex whole": (lambda context: {context.sites[1]: MLPScores(1j, torch.ones(48))}, "complex numbers for blocks"),
    "twice": (
        lambda context: {context.sites[0]: torch.ones(4), context.sites[0].name: torch.zeros(4)},
        "scored blocks.0.attn.hook_z twice, once as a site and once by its name",
    ),
    "unspeakable": (raises_unspeakable, "failed with Unspeakable: Unspeakable"),
    "unspeakable of its own": (raises_unspeakable_error, "the scorer 'bad' of dist-theirs 1.0: UnspeakableError"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_scorer_is_named_and_the_others_go_on(install, fault):
    scorer, message = FAULTS[fault]
    install(theirs=module(bad=scorer))
    with pytest.warns(PluginWarning, match=message) as caught:
        loc = localize(tiny_model("llama"), word_tokenizer(), capital(), ["random", "bad"], progress=False)
    assert list(loc.tables) == ["random"]
    assert str(caught[0].message).startswith("the scorer 'bad' of dist-theirs 1.0")
    assert loc.errors["bad"] == str(caught[0].message)


@pytest.mark.filterwarnings("ignore::peft_surgical.plugins.PluginWarning")
def test_if_all_scorers_fail_localization_does(install):
    install(theirs=module(bad=FAULTS["raises"][0]))
    with pytest.raises(ScorerError, match=r"dist-theirs 1\.0 failed with ZeroDivision"):
        localize(tiny_model("llama"), word_tokenizer(), capital(), ["bad"], progress=False)


SHAPE = ModelShape("llama", n_layers=2, n_heads=4, n_kv_heads=2, d_head=8, d_mlp=3, d_model=32)


def test_scores_become_components():
    sites = sites_of(SHAPE, ("v", "post"))
    raw = {
        sites[0]: [1.0, 2.0],
        sites[1].name: torch.tensor([1.0, -3.0, 0.5]),
        sites[3]: MLPScores(9.0, torch.ones(3)),
    }
    found = check_scores(raw, sites, SHAPE, "the scorer 'x'")
    heads = {"L0.head.0": 1.0, "L0.head.1": 1.0, "L0.head.2": 2.0, "L0.head.3": 2.0}
    assert found.components == {**heads, "L0.mlp": -1.5, "L1.mlp": 9.0}
    assert {name: values.tolist() for name, values in found.neurons.items()} == {
        "L0.mlp": [1.0, -3.0, 0.5],
        "L1.mlp": [1.0, 1.0, 1.0],
    }
    # Under a gradient, and the imaginary part of a conjugate, which torch negates only where it is read.
    negated = torch.tensor([3 + 4j], dtype=torch.complex128).conj().imag
    for values in ([4.0], torch.tensor([4.0], requires_grad=True), -negated):
        assert check_scores({sites[1]: values}, sites, SHAPE, "x").components == {"L0.mlp": 4.0}
    assert check_scores({sites[1]: negated}, sites, SHAPE, "x").components == {"L0.mlp": -4.0}


def test_scores_of_components_keep_their_precision_and_those_of_neurons_are_float32():
    sites = sites_of(SHAPE, ("z", "post"))
    large = torch.arange(4, dtype=torch.float64) + 1e9
    raw = {sites[0]: large, sites[1]: large[:3], sites[2]: [10**9 + n for n in range(4)], sites[3]: [1e300]}
    found = check_scores(raw, sites, SHAPE, "x")
    heads = {f"L{layer}.head.{head}": 1e9 + head for layer in range(2) for head in range(4)}
    assert found.components == {**heads, "L0.mlp": 3e9 + 3, "L1.mlp": 1e300}
    assert found.neurons["L0.mlp"].dtype == np.float32
    with pytest.raises(ScorerError, match=r"a score for blocks\.0\.mlp.hook_post that is not a finite number"):
        check_scores({sites[1]: [0.0, 1e300, 0.0]}, sites, SHAPE, "x")


def test_options_are_read_by_the_type_of_their_default(install):
    def scorer(context, *, share: float = 0.5, many: int = 3, name: str = "a", yes: bool = False):
        """Reads options."""

    install(theirs=module(mine=scorer))
    catalogue = load_scorers()
    spec = ScorerSpec.parse("mine:share=1,many=4,name=b,yes=true,sites=k+pre", catalogue)
    assert dict(spec.options) == {"share": 1.0, "many": 4, "name": "b", "yes": True}
    assert spec.projections == ("k", "pre")
    assert {site.projection for site in spec.sites(SHAPE)} == {"k", "pre"}
    assert ScorerSpec.parse("mine", catalogue).projections == ("z", "post")
    assert ScorerSpec.parse("mine:many=2", catalogue, ("v",)).text == "mine:many=2,sites=v"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("attribution:stops=3", "'attribution' of peft-surgical has no option 'stops'; its options are sites, steps"),
        ("attribution:steps=many", "steps in .* must be of type int, not 'many'"),
        ("attribution:steps", "not of the form option=value"),
        ("random:sites=z+v", "more than one of z, v, q, k"),
        ("attribution:steps=1,steps=2", "'attribution:steps=1,steps=2' gives the option 'steps' twice"),
        ("random:sites=z,sites=v", "gives the option 'sites' twice"),
        ("random:sites=w", "'w'; the projections that can be scored are z"),
    ],
)
def test_malformed_options_are_refused(text, message):
    with pytest.raises(ScorerError, match=message):
        ScorerSpec.parse(text, load_scorers())


@pytest.mark.parametrize("default", [(1, 2), [1], {}, b"x"])
def test_an_option_that_text_cannot_give_is_refused(install, default):
    install(theirs=module(mine=lambda context, *, layers=default: {}))
    kind = type(default).__name__
    with pytest.raises(ScorerError, match=f"the option layers in .* cannot be given as text, since its .* a {kind}"):
        ScorerSpec.parse("mine:layers=34", load_scorers())


def test_a_projection_that_the_model_lacks_is_refused():
    gpt = ModelShape("gpt2", n_layers=2, n_heads=4, n_kv_heads=4, d_head=8, d_mlp=3, d_model=32)
    with pytest.raises(ScorerError, match="not gated"):
        ScorerSpec.parse("random:sites=pre_linear", load_scorers()).sites(gpt)


def test_importing_the_plugins_does_not_import_transformer_lens():
    import subprocess

    code = "import sys, peft_surgical.plugins as p; p.load_scorers(); import peft_surgical.localization; "
    code += "sys.exit('transformer_lens' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
