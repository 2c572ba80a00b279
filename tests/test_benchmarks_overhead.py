import json

import pytest

from benchmarks import overhead


def test_a_small_run(model_folder, capsys):
    small = ["--components", "2", "--batch", "1", "--length", "4", "--repeats", "2"]
    overhead.main(["--model", str(model_folder), *small])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(found["chosen"]) == 2
    for row in (found["forward"], found["training_step"]):
        assert row["ratio"] == row["adapted"] / row["base"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "no/such"], "Error: cannot load the model 'no/such'"),
        (["--repeats", "1"], "--repeats must be 2 or more"),
        (["--components", "4000"], "Error: 4000 components need 2000 of kind 'head'; the model has"),
    ],
)
def test_mistakes_are_told_in_a_line(options, message, model_folder, capsys):
    with pytest.raises(SystemExit) as stopped:
        overhead.main(["--model", str(model_folder), *options])
    assert stopped.value.code not in (0, None)
    assert message in capsys.readouterr().err
