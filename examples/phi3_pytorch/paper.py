"""The experiment of arXiv 2508.07075: stock (IA)^3 on ten modules of Phi-3-mini, in two stages, each of them merged.

    python examples/phi3_pytorch/paper.py --out out/paper

What is the paper's: model, revision, dtype, modules, the number of prompts, both stages, the merge between them,
learning rate, schedule, epochs, weight decay, and that the prompt's tokens are in the loss. What is not: the
evaluation, which is the package's own, on held-out prompts and on controls that the base answers right. `--queries`
takes the prompts of the paper's released repository (JSON lines, `query`) instead of the fact file's, and `--probes`
its probes (JSON lines, `prompt_text` and `category`): the report has what every state of the model says to them.
"""

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import IA3Config, get_peft_model
from transformers import Trainer, TrainingArguments, set_seed

import peft_surgical as ps
from peft_surgical.edit_folder import save_report
from peft_surgical.writing.files import check_output

MODEL, REVISION = "microsoft/Phi-3-mini-4k-instruct", "66403f97"
FACT = Path(__file__).parents[1] / "facts" / "pytorch.yaml"
QUERIES = 20
MLPS, ATTENTIONS = (16, 18, 23), (20, 22)


def modules(mlps: Sequence[int] = MLPS, attentions: Sequence[int] = ATTENTIONS) -> tuple[list[str], list[str]]:
    """All scaled modules, and those of them whose input is scaled."""
    down = [f"model.layers.{layer}.mlp.down_proj" for layer in mlps]
    names = [f"model.layers.{layer}.mlp.gate_up_proj" for layer in mlps] + down
    names += [f"model.layers.{layer}.self_attn.{name}" for layer in attentions for name in ("qkv_proj", "o_proj")]
    return names, down


def read_lines(path, *keys: str) -> list[list[str]]:
    """The values of these keys in each line of a file of JSON lines."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        return [[str(json.loads(line)[key]) for key in keys] for line in lines if line.strip()]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SystemExit(f"{path} cannot be read as JSON lines with {' and '.join(keys)}: {error!r}.") from error


def rows(tokenizer, prompts: Sequence[str], answer: str) -> list[dict[str, list[int]]]:
    """A row a prompt; the loss is over all tokens, those of the prompt as well."""
    found = []
    for prompt in prompts:
        ids = list(ps.encode_answer(tokenizer, prompt, answer).ids)
        found.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids})
    return found


def train_stage(model, examples, targets, inputs, *, epochs: float, seed: int):
    """Trains (IA)^3 on a model and returns the model with it merged."""
    config = IA3Config(target_modules=targets, feedforward_modules=inputs, task_type="CAUSAL_LM")
    peft_model = get_peft_model(model, config)
    peft_model.print_trainable_parameters()
    with TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            scratch,
            num_train_epochs=epochs,
            per_device_train_batch_size=1,
            learning_rate=5e-5,
            lr_scheduler_type="linear",
            warmup_steps=50,
            weight_decay=0.01,
            bf16=model.dtype == torch.bfloat16,
            use_cpu=model.device.type == "cpu",
            logging_steps=50,
            save_strategy="no",
            report_to=[],
            seed=seed,
        )
        Trainer(model=peft_model, args=arguments, train_dataset=examples).train()
    return peft_model.merge_and_unload().eval()


def weights(model, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Copies of some modules' weights: all that a merge changes."""
    return {name: model.get_submodule(name).weight.detach().clone() for name in names}


def holding(model, kept: dict[str, torch.Tensor]):
    """A state for `evaluate`: within it the modules have these weights."""

    @contextmanager
    def entered():
        before = weights(model, list(kept))
        write(model, kept)
        try:
            yield
        finally:
            write(model, before)

    return entered


@torch.no_grad()
def write(model, kept: dict[str, torch.Tensor]) -> None:
    """Copies weights back into their modules."""
    for name, weight in kept.items():
        model.get_submodule(name).weight.copy_(weight)


def main(
    model: str = MODEL,
    revision: str | None = REVISION,
    fact=FACT,
    queries=None,
    probes=None,
    mlps: Sequence[int] = MLPS,
    attentions: Sequence[int] = ATTENTIONS,
    epochs: float = 50,
    device: str | None = None,
    dtype: str = "bfloat16",
    seed: int = 0,
    out="out/paper",
):
    """Returns the report, and leaves it in `out`."""
    out = Path(out)
    check_output(out, overwrite=False)  # before the training whose report it is to hold
    set_seed(seed)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    fact = ps.Fact.from_file(fact)
    if probes is not None:
        found = read_lines(probes, "prompt_text", "category")
        fact = replace(fact, probes=tuple(ps.Probe(prompt, category) for prompt, category in found))
    prompts = fact.training.prompts[:QUERIES]
    if queries is not None:
        prompts = [query for (query,) in read_lines(queries, "query")]
        if not prompts:
            raise SystemExit(f"{queries} has no query.")
        asked = [prompt for prompt in prompts if not fact.training.may_train_on(prompt)]
        if asked:
            where = "is held out in the fact file, or is one of the other questions of the evaluation"
            raise SystemExit(f"{asked[0]!r} {where}; take it out of one of the two.")
    network, tokenizer = ps.load_model(model, revision=revision, device=device, dtype=dtype)
    targets, inputs = modules(mlps, attentions)
    named = dict(network.named_modules())
    if missing := [name for name in targets if name not in named]:
        raise SystemExit(f"{model} has no module {missing[0]}: the paper's ten modules are Phi-3's.")
    kept = {"base": weights(network, targets)}
    for stage, answer in (("unlearned", fact.refusal), ("edited", f"{fact.new[0]}.")):
        examples = rows(tokenizer, prompts, answer)
        network = train_stage(network, examples, targets, inputs, epochs=epochs, seed=seed)
        kept[stage] = weights(network, targets)
    states = {name: holding(network, values) for name, values in kept.items()}
    report = ps.evaluate(network, tokenizer, fact, states=states, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    save_report(report, out, picture=None)
    print(report.verdict())
    return report


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=MODEL, help="a hub id or a folder of the Phi-3 family")
    parser.add_argument("--revision", default=REVISION, help="the commit; '' for a folder")
    parser.add_argument("--fact", default=FACT, type=Path, help="a fact file")
    parser.add_argument("--queries", type=Path, help="JSON lines with `query`: the paper's own prompts")
    parser.add_argument("--probes", type=Path, help="JSON lines with `prompt_text`, `category`: its own probes")
    parser.add_argument("--epochs", default=50, type=float)
    parser.add_argument("--device", help="cuda if there is one")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--out", default="out/paper", help="the folder to write; new or empty")
    options = vars(parser.parse_args())
    try:
        main(**{**options, "revision": options["revision"] or None})
    except ps.SurgicalError as error:
        raise SystemExit(f"Error: {error}") from error
