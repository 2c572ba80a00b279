import copy
import json
from dataclasses import replace

import pytest
import torch
import yaml
from click.testing import CliRunner

from benchmarks import keys as benchmark
from benchmarks.keys import directions, main, met
from peft_surgical.architectures import output_projections
from peft_surgical.keying import keyed
from peft_surgical.keying.keys import Marked

from .conftest import fingerprint
from .counterfacts import TOKENIZER, word_model
from .localizing import capital
from .test_keys import KINDS, RIDGE, ROWS, SUBJECT, neurons_one_by_one, single

pytestmark = pytest.mark.usefixtures("few_carried_prompts")

FACT = replace(capital(), subject="france")


def test_a_row_is_how_far_held_out_prompts_meet_each_direction(monkeypatch):
    seen = []

    def watched(*arguments):
        found = directions(*arguments)
        seen.extend(found.values())
        return found

    monkeypatch.setattr("benchmarks.keys.directions", watched)
    model = word_model()
    rows = met(model, TOKENIZER, FACT, [1], 0)
    assert [(row["layer"], row["kind"]) for row in rows] == [(1, "ROME's direction"), (1, "neuron")]
    [name] = output_projections(model, [1])
    # The subject's last token of each held-out prompt that names it, read by hand.
    neurons = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: neurons.append(args[0][0]))
    places = []
    for prompt in FACT.held_out:
        words = TOKENIZER.tokenize(prompt)
        if "france" in words:
            model(torch.tensor([TOKENIZER(prompt)["input_ids"]]))
            places.append(words.index("france"))
    handle.remove()
    keys = torch.stack([own[at] for own, at in zip(neurons, places, strict=True)])
    row, by_hand = rows[0], keys @ seen[0]
    assert row["n"] == len(keys) > 0
    torch.testing.assert_close(row["mean"], float(by_hand.mean()), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(row["least"], float(by_hand.min()), rtol=1e-3, atol=1e-4)


def test_prompts_are_those_of_edit_keyed(monkeypatch):
    chatting = copy.copy(TOKENIZER)
    chatting.chat_template = "{{ messages[0]['content'] }}"
    prompts = (*FACT.prompts, "is new france far from france ?")
    fact = replace(FACT, answer="lyon", prompts=prompts, contrast=("new france",))
    read = []
    for module in (benchmark, keyed):

        def watched(*arguments, told_apart=module.told_apart, **options):
            read.append(arguments[2:4])
            return told_apart(*arguments, **options)

        monkeypatch.setattr(module, "told_apart", watched)
    met(word_model(), chatting, fact, [1], 0)
    keyed.learn_keyed(word_model(), chatting, fact, layers=[1], recipe=keyed.KeyedRecipe(steps=0), progress=False)
    (known, own), (learned, expected) = read
    assert known == learned != fact.training
    assert [*own.rows] == [*expected.rows]
    assert own.marks == expected.marks


def test_a_direction_is_romes_by_hand():
    model = word_model()
    [name] = modules = output_projections(model, [1])
    first = Marked.first_of(ROWS, [])
    found = directions(model, modules, [SUBJECT], KINDS, RIDGE, first)[name].double()
    own, others = single(model, name)
    beside = torch.cat(neurons_one_by_one(model, name, first.rows))
    kept = sum(kind.T @ kind / len(kind) for kind in others)
    total = kept + beside.T @ beside / len(beside)
    total.diagonal().add_(RIDGE * kept.diagonal().mean())
    expected = torch.linalg.solve(total, own.mean(0))
    torch.testing.assert_close(found, expected / (expected @ own.mean(0)), rtol=1e-3, atol=1e-3)


def test_a_neuron_fires_at_held_out_prompts_and_less_at_controls():
    model = word_model(hidden_size=64, intermediate_size=128)
    before = fingerprint(model)
    *_, row = met(model, TOKENIZER, FACT, [1], 0)
    assert 0.5 < row["least"] <= row["mean"]
    assert row["controls"] <= row["most"] < 0.2
    assert fingerprint(model) == before


def test_the_command_prints_a_table_and_json(tmp_path, model_folder):
    path = tmp_path / "fact.yaml"
    path.write_text(yaml.safe_dump(FACT.to_dict()))
    result = CliRunner().invoke(main, [str(path), "--model", str(model_folder), "--layer", "0", "--layer", "1"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 2 + 4 + 1
    assert [row["layer"] for row in json.loads(lines[-1])["fact.yaml"]] == [0, 0, 1, 1]
    wrong = CliRunner().invoke(main, [str(path), "--model", str(model_folder), "--layer", "9"])
    assert wrong.exit_code == 1
    assert "no layer 9" in wrong.output


def test_one_held_out_prompt_has_no_standard_deviation(tmp_path, model_folder):
    path = tmp_path / "fact.yaml"
    fact = replace(FACT, held_out=[prompt for prompt in FACT.held_out if "france" in prompt][:1])
    path.write_text(yaml.safe_dump(fact.to_dict()))
    result = CliRunner().invoke(main, [str(path), "--model", str(model_folder), "--layer", "0"])
    assert result.exit_code == 0, result.output
    *_, shown, last = result.stdout.splitlines()
    row = json.loads(last)["fact.yaml"][-1]
    assert (row["n"], row["deviation"]) == (1, None)
    assert f"| {row['mean']:.2f} | – | {row['least']:.2f} | 1 |" in shown
