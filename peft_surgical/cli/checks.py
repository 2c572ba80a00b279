"""What can be checked before a model is loaded, so that a mistake is told at once and nothing is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FactError, OutputError, SelectionError, brief
from ..writing.files import check_output, check_output_file

if TYPE_CHECKING:
    from ..selection import Selection


def output(path: Path, overwrite: bool) -> None:
    """Refuses an output folder that would lose something, and says which option allows it.

    Raises:
        OutputError: As [`check_output`].
    """
    check_output(path, overwrite=True)
    if not overwrite and path.is_dir() and any(path.iterdir()):
        raise OutputError(f"the output folder {path} is not empty; name another one or give --overwrite.")


def edit_folder(path: Path, overwrite: bool) -> None:
    """The same of the folder that an edit writes.

    Raises:
        OutputError: As [`output`], or if one of an edit's folders in it holds something else.
    """
    from ..edit_folder import check_edit_folder

    output(path, overwrite)
    check_edit_folder(path)


def output_file(path: Path, overwrite: bool) -> None:
    """The same of an output that is one file.

    Raises:
        OutputError: If it is there while `overwrite` is false, is no file, or its folder cannot be written.
    """
    check_output_file(path, overwrite=True)
    if path.exists() and not overwrite:
        raise OutputError(f"the file {path} exists; name another one or give --overwrite.")
    check_output(path.parent if path.exists() else path, overwrite=True)


def subject(prompt: str, given: str | None) -> str:
    """What a prompt is about, as it is given or guessed.

    Raises:
        FactError: If it cannot be guessed; names the option.
    """
    if given is not None:
        return given
    from ..drafting.guess import guess_subject

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
    from ..localizing.specs import ScorerSpec
    from ..plugins import load_scorers

    catalogue = load_scorers()
    for name in names:
        ScorerSpec.parse(name, catalogue)


def selection(names: Sequence[str], path: Path | None = None) -> Selection | None:
    """The components named by hand or in a file, if any; whether the model has them is not known yet.

    Raises:
        SelectionError: For a malformed or repeated name, or a file that holds no selection.
    """
    if not names and path is None:
        return None
    from ..selection import Selection

    return Selection.from_components(*names) if path is None else Selection.load(path)


def projections(names: Sequence[str], chosen: Selection | None, limits: Mapping[str, int | None]) -> None:
    """Refuses projections that are none of what will be scaled in any case; the model may have more to say.

    Raises:
        SelectionError: For the first such component.
    """
    from ..selection import sure_components
    from ..sites import Component, projections_of

    for name in sure_components(chosen, **limits) if names else ():
        projections_of(Component.parse(name), names)


def model_has(model: Any, chosen: Selection | None, top: int | None) -> None:
    """Refuses to select what a loaded model does not have.

    Raises:
        SelectionError: For a selection that is not of this model, or more components than there are.
        ArchitectureError: For a model whose components are not known.
    """
    from ..sites import ModelShape

    shape = ModelShape.from_config(model.config)
    if chosen is not None:
        chosen.check(shape)
    available = shape.n_layers * (shape.n_heads + 1)
    if chosen is None and top is not None and top > available:
        raise SelectionError(
            f"the model has {available} components ({shape.n_heads} heads and an MLP in each of {shape.n_layers} "
            f"layers), so --top can be {available} at most, not {top}."
        )
