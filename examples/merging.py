"""From two staged adapters to one plain adapter and to a merged checkpoint, and a check that all three say the same.

    python examples/merging.py --out out/merging
    python examples/merging.py --out out/merging --adapters out/france/unlearn out/france/learn

Without `--adapters` it trains two stages of two steps each first: enough to differ from the base, not an edit.
"""

from argparse import ArgumentParser
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import peft_surgical as ps

FACT = Path(__file__).parent / "facts" / "france_capital.yaml"
SHORT = ps.Recipe(steps=2, variants=0, neighbours=8, general=16)


def train_stages(model, fact, out):
    network, tokenizer = ps.load_model(model, dtype="float32")
    config = ps.SurgicalIA3Config(components=["L0.mlp", "L1.mlp"], task_type="CAUSAL_LM")
    first = ps.unlearn(network, tokenizer, fact, config, recipe=SHORT)
    second = ps.learn(first.model, tokenizer, fact, recipe=SHORT, retained=first.retained)
    first.save(out / "unlearn")
    second.save(out / "learn")
    return [out / "unlearn", out / "learn"]


@torch.no_grad()
def main(model="demo", fact=FACT, out="out/merging", adapters=()):
    """Returns the logits of the base, with both stages, with the plain adapter and of the merged checkpoint."""
    out, fact = Path(out), ps.Fact.from_file(fact)
    if out.exists() and any(out.iterdir()):  # before the training
        raise ps.OutputError(f"the folder {out} is not empty; name another one.")
    with torch.enable_grad():
        adapters = list(adapters) or train_stages(model, fact, out)
    base, tokenizer = ps.load_model(model, dtype="float32")
    ids = torch.tensor([tokenizer(fact.held_out[0])["input_ids"]])
    found = {"base": base(ids).logits}

    ps.stack(adapters, out / "edit")  # one plain (IA)^3 adapter for stock PEFT
    ps.merge(base, adapters, out / "merged", tokenizer=tokenizer)  # a checkpoint; `base` stays
    found["merged"] = AutoModelForCausalLM.from_pretrained(out / "merged")(ids).logits

    staged = PeftModel.from_pretrained(base, adapters[0], adapter_name="stage 0")
    for number, folder in enumerate(adapters[1:], 1):
        staged.load_adapter(folder, f"stage {number}")
    ps.activate(staged, [f"stage {number}" for number in range(len(adapters))])
    found["staged"] = staged(ids).logits
    found["plain"] = PeftModel.from_pretrained(staged.unload(), out / "edit")(ids).logits

    for name in ("base", "plain", "merged"):
        print(f"{name:7} differs from both stages by at most {(found[name] - found['staged']).abs().max():.3g}")
    torch.testing.assert_close(found["plain"], found["staged"])
    torch.testing.assert_close(found["merged"], found["staged"], atol=1e-3, rtol=1e-3)
    return found


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="a hub id, a folder, a .gguf file or demo")
    parser.add_argument("--fact", default=FACT, type=Path, help="a fact file")
    parser.add_argument("--out", default="out/merging", help="the folder to write; new or empty")
    parser.add_argument("--adapters", nargs="+", default=(), type=Path, help="staged adapters, in order")
    try:
        main(**vars(parser.parse_args()))
    except ps.SurgicalError as error:
        raise SystemExit(f"Error: {error}") from error
