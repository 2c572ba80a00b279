"""Which rows a keyed edit runs, from which token on, and what those it keeps cost."""

import copy
from dataclasses import replace

import pytest
import torch

import peft_surgical as ps
from peft_surgical.keying import firing, keyed
from peft_surgical.keying.keyed import learn_keyed
from peft_surgical.running.tails import TailRunner
from peft_surgical.texts import topics

from .adapters import logits
from .counterfacts import TOKENIZER, word_model
from .test_keyed import FACT, NAMED, RECIPE, taught

pytestmark = pytest.mark.usefixtures("few_carried_prompts")


def with_template():
    """A tokenizer whose template begins with three words."""
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = "what is .{% for message in messages %} {{ message.content }}{% endfor %}"
    return tokenizer


@pytest.mark.parametrize(("aliases", "wanted"), [((), (6, 11, 3)), (("paris",), (6, 6, 3)), (("city",), (6, 11, 6))])
def test_what_stands_before_a_name_is_not_run_again(aliases, wanted, monkeypatch):
    tokenizer, taken, plain = with_template(), [], TailRunner.add

    def add(self, rows, *args, starts=None, **options):
        taken.extend((tokenizer.decode(row[:start]), start) for row, start in zip(rows, starts, strict=True))
        return plain(self, rows, *args, starts=starts, **options)

    monkeypatch.setattr(TailRunner, "add", add)
    fact = replace(FACT, aliases=aliases)
    learn_keyed(word_model(), tokenizer, fact, recipe=replace(RECIPE, variants=0), progress=False)
    assert tuple(start for _, start in taken[:3]) == wanted
    # What is kept has no name to begin at, and is run from where a neuron fires.
    kept = taken[3:]
    assert all(text.startswith("what is .") for text, _ in kept)
    taken.clear()
    monkeypatch.setattr(firing, "_FIRES", -1.0)
    learn_keyed(word_model(), tokenizer, fact, recipe=replace(RECIPE, variants=0), progress=False)
    assert {text for text, _ in taken[3:]} == {"what is ."}
    assert len(taken[3:]) >= len(kept)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_is_left_out_by_that_is_next_to_nothing(family, monkeypatch):
    tokenizer, runners, plain = with_template(), [], TailRunner.add

    def add(self, *arguments, **options):
        runners.append(self)
        return plain(self, *arguments, **options)

    monkeypatch.setattr(TailRunner, "add", add)
    # Wide enough to tell a subject from any other word.
    sizes = {"n_embd": 256} if family == "gpt2" else {"hidden_size": 256, "intermediate_size": 512}
    base = word_model(family, **sizes)
    stage = learn_keyed(word_model(family, **sizes), tokenizer, NAMED, recipe=RECIPE, progress=False)
    [runner] = runners
    assert max(runner.starts) > min(runner.starts) == 3
    changed = []
    # The fact's rows and the kept ones, each to its last token.
    for index, row in enumerate(runner.rows):
        read = (runner.starts[index], len(row))
        whole, before = (logits(model, torch.tensor([row]))[0, slice(*read)] for model in (stage.model, base))
        with torch.no_grad():
            found = runner.logits([index], [read])
        torch.testing.assert_close(found, whole, atol=0.05, rtol=0.0)
        changed.append(float((whole - before).abs().max()))
    assert max(changed) > 0.5


@pytest.mark.parametrize("shut", [(), (1, 2, -1), (-1, -2, -3, -4)])
def test_what_is_near_costs_as_much_more_as_the_recipe_says(shut, monkeypatch):
    seen, sampled, plain_train = {"sampled": []}, keyed.Measured.sampled, keyed.train

    def fire(_, __, ___, rows, begin):
        left_out = [i % len(rows) for i in shut]
        return [None if i in left_out else begin for i in range(len(rows))]

    def sample(*args, **options):
        seen["sampled"].append(sampled(*args, **options))
        return seen["sampled"][-1]

    def train(*args, metric, origin, near, **options):
        seen.update(metric=metric, near=near, rows=args[3], base=args[4])
        before = [own.clone() for own in origin]
        record = plain_train(*args, metric=metric, origin=origin, near=near, **options)
        # What training pulls back to stays where it was.
        assert all(map(torch.equal, origin, before))
        return record

    monkeypatch.setattr(keyed, "fire_from", fire)
    monkeypatch.setattr(keyed.Measured, "sampled", sample)
    monkeypatch.setattr(keyed, "train", train)
    taught(recipe=replace(RECIPE, steps=1, near_weight=4.0, everyday=2))
    rows, near = seen["rows"], seen["near"]
    assert len(rows) == near + 4
    assert [i for i, base in enumerate(seen["base"]) if base is None] == sorted(i % len(rows) for i in shut)
    # The mean is over all positions of a kind, and where no neuron fires is nothing to add.
    kinds = (range(near), 4.0), (range(near, len(rows)), 1.0)
    wanted = []
    for (kind, weight), own in zip(kinds, seen["sampled"], strict=True):
        counts = {i: len(rows[i].ids) - rows[i].answer_start for i in kind}
        run = sum(count for i, count in counts.items() if seen["base"][i] is not None)
        wanted.append([(weight * run / sum(counts.values())) ** 0.5 * g for g in own.curvature.gradients])
        assert len(own.base) == sum(seen["base"][i] is not None for i in kind)
    torch.testing.assert_close(seen["metric"].gradients, tuple(map(torch.cat, zip(*wanted, strict=True))))


@pytest.mark.real
def test_to_run_what_neurons_are_shut_in_would_teach_the_same(demo, monkeypatch):
    model, tokenizer = demo
    whole = ps.Fact.from_file("examples/facts/france_capital.yaml")
    fact = replace(whole, prompts=whole.prompts[:6], retain=whole.retain[:8], contrast=whole.contrast[:4])
    # In most of what is asked about the subject neurons fire, and it runs both times.
    monkeypatch.setattr(topics, "_ASKED", topics._ASKED[:3])
    monkeypatch.setattr(keyed, "relation_prompts", lambda fact: [])
    recipe = ps.KeyedRecipe(steps=4, variants=0, neighbours=3, general=4, everyday=4, namesakes=4, retain_tokens=4)
    found, runners, plain = [], [], TailRunner.add

    def add(self, *arguments, **options):
        runners.append(self)
        return plain(self, *arguments, **options)

    monkeypatch.setattr(TailRunner, "add", add)
    for least in (firing._FIRES, -1.0):
        monkeypatch.setattr(firing, "_FIRES", least)
        stage = learn_keyed(copy.deepcopy(model), tokenizer, fact, recipe=recipe, progress=False)
        found.append(
            torch.cat([p.flatten() for name, p in stage.model.named_parameters() if "down_proj.lora_B" in name])
        )
    some, every = (len(runner.rows) for runner in runners)
    assert some < every
    assert (found[0] - found[1]).norm() < 0.1 * found[1].norm()
