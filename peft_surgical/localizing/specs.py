"""How a person names a scorer and its options: `name`, or `name:option=value,option=value`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ScorerError, brief, said
from ..plugins import Catalogue, Installed, load_scorers
from ..sites import DEFAULT_PROJECTIONS, HEAD_PROJECTIONS, MLP_PROJECTIONS, SCORED_PROJECTIONS, ModelShape
from .runs import Site, sites_of


@dataclass(frozen=True)
class ScorerSpec:
    """A scorer, its options, and the projections to score.

    Attributes:
        text: As it was given; what its scores are called.
        installed: The scorer.
        options: Keyword arguments for it.
        projections: At most one of heads and one of MLPs.
    """

    text: str
    installed: Installed
    options: Mapping[str, Any]
    projections: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, catalogue: Catalogue, projections: tuple[str, ...] = DEFAULT_PROJECTIONS) -> ScorerSpec:
        """Read a scorer's name and options.

        Args:
            text: Such as `"logit_drop:measure=old,sites=v+pre"`.
            catalogue: The installed scorers.
            projections: What `sites` is unless given.

        Raises:
            ScorerError: When the scorer is not installed, has no such option, an option is given twice, the value is
                of another type than the option's default, which must be text, a number, a truth value or None, or a
                built-in scorer takes no such value.
        """
        if not isinstance(text, str) or not text.isprintable():
            raise ScorerError(f"a scorer is given as text, such as 'attribution:steps=5', not {brief(text)}.")
        name, _, rest = text.partition(":")
        installed = catalogue[name]
        options: dict[str, Any] = {}
        given: set[str] = set()
        for item in filter(None, rest.split(",")):
            key, equals, value = item.partition("=")
            if not equals:
                raise ScorerError(f"{item!r} in {text!r} is not of the form option=value.")
            if key in given:
                raise ScorerError(f"{text!r} gives the option {key!r} twice.")
            given.add(key)
            if key == "sites":
                projections = _projections(value, text)
            elif key in installed.options:
                options[key] = _convert(value, installed.options[key], key, text)
            else:
                known = ", ".join(["sites", *installed.options])
                raise ScorerError(f"{installed} has no option {key!r}; its options are {known}.")
        if "sites" not in given and projections != DEFAULT_PROJECTIONS:
            # Asked for by another scorer, for its own sites: the table must not be taken for that of the default ones.
            text = f"{text}{',' if rest else ':'}sites={'+'.join(projections)}"
        for other in installed.check(options):
            try:
                cls.parse(other, catalogue, projections)
            except ScorerError as error:
                raise ScorerError(f"{installed}: {said(error)}") from error
        return cls(text, installed, options, projections)

    def sites(self, shape: ModelShape) -> tuple[Site, ...]:
        """The sites to score, in every layer.

        Raises:
            ScorerError: When the model has no such projection.
        """
        if "pre_linear" in self.projections and not shape.architecture.gated:
            raise ScorerError(f"{shape.model_type} MLPs are not gated, so {self.text!r} cannot score pre_linear.")
        return sites_of(shape, self.projections)


def read_scorers(scorers: Sequence[str], catalogue: Catalogue | None = None) -> list[ScorerSpec]:
    """Read the names of scorers and their options.

    Args:
        scorers: At least one; a single name is one scorer.
        catalogue: The installed scorers; looked up unless given.

    Raises:
        ScorerError: When they are no names or none, or as for [`ScorerSpec.parse`].
    """
    if isinstance(scorers, str):
        scorers = [scorers]
    if not isinstance(scorers, Iterable):
        raise ScorerError(
            f"scorers are names of installed ones, such as ['attribution'], not {brief(scorers)}; a function of your"
            " own becomes one in a plugin."
        )
    catalogue = catalogue or load_scorers()
    specs = [ScorerSpec.parse(text, catalogue) for text in scorers]
    if not specs:
        raise ScorerError("name at least one scorer.")
    return specs


def _projections(value: str, text: str) -> tuple[str, ...]:
    names = tuple(value.split("+"))
    for group in (HEAD_PROJECTIONS, MLP_PROJECTIONS):
        if sum(name in group for name in names) > 1:
            raise ScorerError(f"{text!r} scores more than one of {', '.join(group)}; score them one at a time.")
    unknown = [name for name in names if name not in SCORED_PROJECTIONS]
    if unknown:
        known = ", ".join(SCORED_PROJECTIONS)
        raise ScorerError(f"{text!r} scores {unknown[0]!r}; the projections that can be scored are {known}.")
    return names


def _convert(value: str, default: Any, key: str, text: str) -> Any:
    kind = type(default).__name__
    if default is not None and not isinstance(default, (str, int, float)):
        raise ScorerError(f"the option {key} in {text!r} cannot be given as text, since its default is a {kind}.")
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[value.lower()]
        return value if default is None else type(default)(value)
    except (KeyError, ValueError, TypeError):
        raise ScorerError(f"the option {key} in {text!r} must be of type {kind}, not {value!r}.") from None
