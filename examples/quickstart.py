"""A whole edit: rewrite one fact, read the verdict, and load the result with stock PEFT.

    python examples/quickstart.py --out out/quickstart
    python examples/quickstart.py --out out/short --short    # to see it run: too short for the edit to take

The first takes as long as `peft-surgical edit` with its defaults, see the README; the folder holds the same files.
"""

from argparse import ArgumentParser
from pathlib import Path

from peft import PeftModel

import peft_surgical as ps

FACT = Path(__file__).parent / "facts" / "france_capital.yaml"
SHORT = ps.Recipe(steps=2, variants=0, neighbours=8, general=16)


def main(model="demo", fact=FACT, out="out/quickstart", short=False):
    """Returns the report, and the answers of the base and the edited model to the fact's first held-out prompts."""
    fact = ps.Fact.from_file(fact)
    network, tokenizer = ps.load_model(model)
    options = {"recipe": SHORT, "retention_tokens": 256} if short else {}
    report = ps.edit(network, tokenizer, fact, out=out, **options)
    print(report.verdict())
    for label, cells in report.rows():
        print(f"{label:60}", *cells, sep="  ")

    # `network` carries both stages now. What others get is the folder `edit`, for the unedited base.
    base, tokenizer = ps.load_model(model)
    prompts = fact.held_out[:3]
    before = ps.generate_answers(base, tokenizer, prompts)
    edited = PeftModel.from_pretrained(base, Path(out) / "edit")
    after = ps.generate_answers(edited, tokenizer, prompts)
    for prompt, old, new in zip(prompts, before, after, strict=True):
        print(f"{prompt}\n  base:   {old}\n  edited: {new}")
    return report, before, after


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="a hub id, a folder, a .gguf file or demo")
    parser.add_argument("--fact", default=FACT, type=Path, help="a fact file")
    parser.add_argument("--out", default="out/quickstart", help="the folder to write; new or empty")
    parser.add_argument("--short", action="store_true", help="a few steps, little to keep")
    try:
        main(**vars(parser.parse_args()))
    except ps.SurgicalError as error:
        raise SystemExit(f"Error: {error}") from error
