import json
import sys

import pytest
import torch

from benchmarks import localization, precision
from benchmarks.localization import main, overlap, print_table, spearman


@pytest.fixture
def printed(model_folder, fact_file, monkeypatch, capsys):
    """What the command prints for the planted model, and its last line, parsed."""
    options = ["--model", model_folder, "--fact", fact_file, "--prompts", 2, "--reference", 1, "--max-tokens", 256]
    monkeypatch.setattr(sys, "argv", ["localization", *map(str, options)])
    main()
    lines = capsys.readouterr().out.splitlines()
    return lines[:-1], json.loads(lines[-1])


def test_a_small_run(printed):
    lines, found = printed
    assert (found["components"], found["prompts"], found["prompts_one_by_one"]) == (15, 2, 1)
    assert (found["dtype"], found["device"]) == ("float32", "cpu")
    assert found["exact_largest_error"] < 1e-5 < 0.1 < found["largest_effect"]
    assert found["spearman"] > 0.5
    assert found["top10_overlap"] >= 0.5
    # All of the fact's prompts.
    assert found["default"]["prompts"] == 3
    seconds, faster = found["seconds_per_prompt"], found["times_faster"]
    assert seconds["default"] == pytest.approx(found["default"]["seconds"] / 3)
    assert faster == pytest.approx({name: seconds["one_by_one"] / value for name, value in seconds.items()})
    table = {line[:44].strip(): line[44:].split() for line in lines}
    for label, name in {
        "one run_with_hooks forward a component": "one_by_one",
        "exact (logit_drop), growing batch": "exact",
        "the default of localize, over 3 prompts": "default",
        "attribution": "attribution",
    }.items():
        assert table[label] == [f"{seconds[name]:.3f}", f"{faster[name]:.1f}"]


@pytest.mark.parametrize("module", [localization, precision])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fact", "no/such.yaml"], "Error: no/such.yaml: cannot be read"),
        (["--model", "no/such"], "Error: cannot load the model 'no/such'"),
        (["--prompts", "0"], "0 is less than 1"),
    ],
)
def test_mistakes_are_told_in_a_line(module, options, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", *options])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code not in (0, None)
    assert message in capsys.readouterr().err


def test_memory_is_above_the_weights_and_above_a_plain_forward(printed):
    lines, found = printed
    above = found["peak_above_weights_mib"]
    assert above.keys() == {"plain_forward", "attribution", "gradient_norm", "default"}
    # Vocabulary and width of the planted model, 3 layers of 4 heads and 48 neurons, in float32.
    layer = 4 * 32**2 + 3 * 32 * 48 + 2 * 32
    assert found["weights_mib"] * 2**20 == pytest.approx(4 * (2 * 128 * 32 + 32 + 3 * layer))
    for name, size in found["peak_above_plain_forward_mib"].items():
        assert size == pytest.approx(above[name] - above["plain_forward"])
    assert lines[-1].startswith("peak above a plain forward's: attribution ")
    assert "plain_forward" in lines[-2]


def test_a_table_of_figures_that_are_given(capsys):
    ways = ("one_by_one", "exact", "default", "attribution")
    print_table(
        {
            "model": "m",
            "dtype": "float32",
            "device": "cpu",
            "threads": 2,
            "components": 300,
            "prompts": 8,
            "tokens": [40, 46],
            "seconds_per_prompt": dict(zip(ways, (40.0, 4.0, 0.5, 0.1), strict=True)),
            "times_faster": dict(zip(ways, (1, 10, 80, 400), strict=True)),
            "default": {"seconds": 12.0, "prompts": 24},
            "exact_largest_error": 3e-5,
            "largest_effect": 30.0,
            "spearman": 0.9,
            "top10_overlap": 0.8,
            "spearman_of_means": 0.95,
            "top10_overlap_of_means": 1.0,
            "weights_mib": 500.0,
            "peak_above_weights_mib": {"plain_forward": 40.0, "attribution": 1200.0},
            "peak_above_plain_forward_mib": {"attribution": 1160.0},
        }
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "300 components, 8 prompts of up to 46 tokens"
    assert lines[5].split() == ["the", "default", "of", "localize,", "over", "24", "prompts", "0.500", "80.0"]
    assert lines[-2:] == [
        "peak above the weights (500 MiB): plain_forward 40 MiB, attribution 1200 MiB",
        "peak above a plain forward's: attribution 1160 MiB",
    ]


def test_agreement_by_hand():
    one, other = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 3.0, 2.0, 4.0])
    # 1 - 6 * (1 + 1) / (4 * 15)
    assert spearman(one, other) == pytest.approx(0.8)
    assert spearman(one, -one) == pytest.approx(-1)
    assert overlap(one, other, 2) == 0.5
