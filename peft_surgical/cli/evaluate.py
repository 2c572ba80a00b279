"""`peft-surgical evaluate`: the report for any model and adapters, ours or not."""

from __future__ import annotations

from pathlib import Path

import click

import peft_surgical as ps

from ..adapters.lineage import identities
from ..edit_folder import EVALUATION, replacing, save_report
from ..facts import Fact
from ..measuring.afterwards import with_relearned, with_rounded
from ..measuring.attached import attach, check_together
from ..measuring.checkpoints import check_edited, edited_checkpoint
from ..reporting.summary import summarize
from ..running.cache import kept_beside
from ..writing.claims import claimed
from . import checks, options
from .loading import load, quiet_libraries, tell_trusted
from .terminal import REPORT_FILES, on_interrupt, print_json, print_result, this_command


@click.command(short_help="Measure a model, with or without adapters, on a fact.")
@options.fact
@options.model
@options.adapter
@options.edited
@options.out
@options.retention_tokens
@click.option(
    "--bits",
    multiple=True,
    type=click.IntRange(2, 8),
    metavar="N",
    help="Also measure base and edited with weights rounded to so many bits, adapters merged; may be repeated.",
)
@click.option(
    "--relearn",
    multiple=True,
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="Also measure base and edited after so many steps of fine-tuning on the old answer; may be repeated.",
)
@click.option("--margins", is_flag=True, help="Also measure how likely each answer is beside the other one.")
@click.option("--fluency", is_flag=True, help="Also measure how varied the text is that is written about the subject.")
@options.seed
@options.overwrite
@options.as_json
@options.quiet
@options.debug
@click.pass_context
def evaluate(
    context: click.Context,
    fact_file: Path,
    source: options.Source,
    adapters: tuple[Path, ...],
    edited: str | None,
    out: Path,
    retention_tokens: int,
    bits: tuple[int, ...],
    relearn: tuple[int, ...],
    margins: bool,
    fluency: bool,
    seed: int,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure a model on a fact; write report.json and report.html.

    Adapters may be surgical, plain (IA)^3, LoRA or any other that PEFT adds to weights. With all of them the model is
    called edited; before that it is called after 1, after 2, …, and unlearned between the two stages of one edit.

    An edit in the weights of a whole checkpoint, by ROME, MEMIT, fine-tuning or `merge`, is measured with that as
    --edited and its base as --model. Without --dtype both are measured in the wider of the
    two dtypes. Only weights may differ.

    \b
    Examples:
      peft-surgical evaluate fact.yaml --model demo --adapter out/unlearn --adapter out/learn --out check
      peft-surgical evaluate fact.yaml --model demo --edited ./merged --out check
      peft-surgical evaluate fact.yaml --adapter out/edit --margins --out check
      peft-surgical evaluate fact.yaml --adapter out/edit --bits 8 --bits 4 --out check
      peft-surgical evaluate fact.yaml --adapter out/edit --relearn 5 --fluency --out check
    """
    if edited is not None and adapters:
        raise click.UsageError("--edited and --adapter exclude each other: merge the adapters, or measure one by one.")
    fact = Fact.from_file(fact_file)
    checks.output(out, overwrite, EVALUATION)
    check_together(adapters)
    if edited is not None:
        check_edited(edited)
    with claimed(out, overwrite=overwrite):
        model, tokenizer = load(source, quiet=quiet)
        beside = None
        if edited is None:
            model, states = attach(model, adapters, quiet_libraries)
        else:
            if source.trust_remote_code:
                tell_trusted(edited)
            beside = edited_checkpoint(
                model,
                tokenizer,
                edited,
                # A dtype that was asked for is both models'; else it is one that holds both.
                wider="widen" if source.dtype == "auto" else "round",
                trust_remote_code=source.trust_remote_code,
                quiet=quiet_libraries,
            )
            states = beside.states
        states = with_rounded(model, states, bits)
        states = with_relearned(model, states, tokenizer, fact, relearn, seed=seed, progress=not quiet)
        on_interrupt(context, out)
        with kept_beside(out):
            report = ps.evaluate(
                model,
                tokenizer,
                fact,
                states=states,
                seed=seed,
                retention_tokens=retention_tokens,
                margins=margins,
                fluency=fluency,
                settings={
                    "command": this_command(context),
                    "adapters": identities(adapters),
                    **({} if beside is None else beside.settings),
                },
                progress=not quiet,
            )
        with replacing(out, overwrite, EVALUATION) as folder:
            save_report(report, folder, None)
    if as_json:
        print_json(report.to_dict())
    print_result(summarize(report, out, [REPORT_FILES]), quiet=quiet, as_json=as_json)
