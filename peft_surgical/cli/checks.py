"""What is checked before anything is computed or written, so that a mistake is told at once.

All but `model_has` needs no model and runs before one is loaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .. import plugins
from ..adapters.bases import note_revision
from ..drafting.guess import guess_subject
from ..earlier import Earlier
from ..edit_folder import WRITTEN, check_edit_folder
from ..errors import FactError, FactWarning, ModelError, SelectionError, brief
from ..loading.demo import MODEL_ID
from ..localizing.specs import ScorerSpec
from ..selection import Selection, select, sure_components
from ..sites import Component, ModelShape, components, projections_of
from ..writing.files import check_output, check_output_file
from .launch import sharded
from .options import Source

HOW = "give --overwrite"
"""How a command allows an output that is there to be replaced."""


@contextmanager
def refused_unnamed(refused: bool) -> Iterator[None]:
    """Does not warn in a block of facts none of whose prompts names the subject, where that will be refused, which
    says as much."""
    with warnings.catch_warnings():
        if refused:
            warnings.filterwarnings("ignore", "(?s).*no prompt in 'prompts'.* names the subject ", FactWarning)
        yield


def output(path: Path, overwrite: bool, replaced: Sequence[str] = ()) -> None:
    """Refuses an output folder that would lose something, and says which option allows it.

    Args:
        path: The folder.
        overwrite: Allow it to hold something.
        replaced: The names of what an edit writes that is replaced then.

    Raises:
        OutputError: As [`check_output`], or as [`check_edit_folder`].
    """
    # First what no option allows.
    check_edit_folder(path, replaced)
    check_output(path, overwrite=overwrite, how=HOW)


def edit_folder(path: Path, overwrite: bool) -> None:
    """The same of the folder that an edit writes.

    Raises:
        OutputError: As [`output`].
    """
    output(path, overwrite, WRITTEN)


def earlier(on: Sequence[Path], source: Source, out: Path) -> None:
    """Refuses earlier edits to make one on top of that cannot be read, are only half there, are of another base than
    the one that is named, or would be replaced.

    Raises:
        AdapterError: If they are so.
        ModelError: If the model would be spread over processes.
        OutputError: If one of them would be replaced.
    """
    if not on:
        return
    read = Earlier.read(on)
    # All that is read of a model here is its name and revision.
    named = SimpleNamespace(name_or_path=MODEL_ID if source.name == "demo" else source.name)
    note_revision(named, source.revision)
    read.check_base(named.name_or_path)
    read.check_lineage(named)
    read.check_stay(out, WRITTEN)
    if sharded():
        raise ModelError(
            "an edit on top of others needs the whole model in each process; launch it without --use_fsdp."
        )


def output_file(path: Path, overwrite: bool) -> None:
    """The same of an output that is one file.

    Raises:
        OutputError: If it is there while `overwrite` is false, is no file, or its folder cannot be written.
    """
    check_output_file(path, overwrite=overwrite, how=HOW)
    check_output(path.parent if path.exists() else path, overwrite=True)


def subject(prompt: str, given: str | None) -> str:
    """What a prompt is about, as it is given or guessed.

    Raises:
        FactError: If it cannot be guessed; names the option.
    """
    if given is not None:
        return given
    try:
        return guess_subject(prompt)
    except FactError as error:
        raise FactError(f"what {brief(prompt)} is about cannot be guessed; name it with --subject.") from error


def scorers(names: Sequence[str]) -> None:
    """Refuses scorers that are not installed, and options that they do not have.

    Raises:
        ScorerError: For the first such name.
    """
    if not names:
        return
    catalogue = plugins.load_scorers()
    for name in names:
        ScorerSpec.parse(name, catalogue)


def selection(names: Sequence[str], path: Path | None = None) -> Selection | None:
    """The components named by hand or in a file, if any; whether the model has them is not known yet.

    Raises:
        SelectionError: For a malformed or repeated name, or a file that holds no selection.
    """
    if not names and path is None:
        return None
    return Selection.from_components(*names) if path is None else Selection.load(path)


def projections(names: Sequence[str], chosen: Selection | None, limits: Mapping[str, int | None]) -> None:
    """Refuses projections that are none of what will be scaled in any case; the model may have more to say.

    Raises:
        SelectionError: For the first such component.
    """
    for name in sure_components(chosen, **limits) if names else ():
        projections_of(Component.parse(name), names)


def model_has(
    model: Any,
    chosen: Selection | None,
    limits: Mapping[str, int | None],
    projections: Sequence[str],
    neurons: int | None = None,
) -> None:
    """Refuses to select what a loaded model does not have, and a budget that nothing of it fits.

    Args:
        model: The model.
        chosen: Components chosen by hand; then there are no limits.
        limits: Those of `--top`, `--heads`, `--mlps` and `--budget`, by these names.
        projections: Where the budget counts scales.
        neurons: How many of each MLP.

    Raises:
        SelectionError: For a selection that is not of this model, more components or neurons than there are, or a
            budget of fewer scales than any component has.
        ArchitectureError: For a model whose components are not known.
    """
    shape = ModelShape.from_config(model.config)
    if chosen is not None:
        chosen.check(shape)
    layers = f"each of {shape.n_layers} layers"
    heads = shape.n_layers * shape.n_heads
    available = {
        "top": (heads + shape.n_layers, "components", f"{shape.n_heads} heads and an MLP in {layers}"),
        "heads": (heads, "heads", f"{shape.n_heads} in {layers}"),
        "mlps": (shape.n_layers, "MLPs", f"one in {layers}"),
    }
    for name, (count, words, where) in available.items():
        if (limit := limits[name]) is not None and limit > count:
            raise SelectionError(
                f"the model has {count} {words} ({where}), so --{name} can be {count} at most, not {limit}."
            )
    if neurons is not None and neurons > shape.d_mlp:
        raise SelectionError(
            f"an MLP of the model has {shape.d_mlp} neurons, so --neurons can be {shape.d_mlp} at most, not {neurons}."
        )
    if limits["budget"] is not None:
        # Whatever the scores will be.
        alike = {str(component): 0.0 for component in components(shape)}
        select(
            alike,
            shape,
            limits["top"],
            heads=limits["heads"],
            mlps=limits["mlps"],
            budget=limits["budget"],
            projections=projections,
            neurons=neurons,
        )
