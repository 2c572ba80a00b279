"""Finds the installed scorers: the built-in ones and those of plugins, through one hook.

A plugin that cannot be imported, misspells the hook, or takes a name that is taken is left out whole, with a
[`PluginWarning`] that names it and the fault; the others go on. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module, metadata
from pkgutil import iter_modules
from typing import Any

import pluggy

from . import hookspecs, scorers
from .errors import ScorerError, said
from .localizing.context import Scorer, check_of

GROUP = "peft_surgical"
OWN = "peft-surgical"


class PluginWarning(UserWarning):
    """A scorer plugin was left out, or a scorer failed."""


@dataclass(frozen=True)
class Installed:
    """A scorer and where it comes from.

    Attributes:
        name: What `localize(scorers=[…])` and `--scorer` call it.
        scorer: The function.
        distribution: The installed distribution that brought it, with its version when known.
    """

    name: str
    scorer: Scorer
    distribution: str

    @property
    def reads(self) -> str:
        """What the scorer reads: the first line of its docstring, or of the function's that a partial calls."""
        described = self._function if self.scorer.__doc__ == partial.__doc__ else self.scorer
        return (inspect.getdoc(described) or "").partition("\n")[0]

    @property
    def code(self) -> str:
        """The function that runs, with its module."""
        owner = self._function if hasattr(self._function, "__qualname__") else type(self._function)
        return f"{owner.__module__}:{owner.__qualname__}"

    @property
    def options(self) -> Mapping[str, Any]:
        """Option names and their defaults: the scorer's keyword-only parameters."""
        parameters = inspect.signature(self.scorer).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def check(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        """Refuses values of options that no model makes right, where the scorer is a built-in one.

        Args:
            options: Those that are given.

        Returns:
            The other scorers that the options name.

        Raises:
            ScorerError: For such a value; names the scorer.
        """
        # A plugin's wrapper may carry what a scorer of ours was marked with, and take other options.
        check = check_of(self.scorer) if self.distribution == OWN else None
        if check is None:
            return ()
        try:
            return tuple(check(**{**self.options, **options}) or ())
        except ScorerError as error:
            raise ScorerError(f"{self}: {said(error)}") from error

    @property
    def _function(self) -> Any:
        return getattr(self.scorer, "func", self.scorer)  # of a functools.partial

    def __str__(self) -> str:
        return f"the scorer {self.name!r} of {self.distribution}"


@dataclass(frozen=True)
class Plugin:
    """Code of another distribution, which runs as soon as scorers are looked up.

    Attributes:
        name: The entry point's name.
        code: The module that it names.
        distribution: The installed distribution that brought it, with its version when known.
        file: The module's file; None when it could not be imported or has none.
        fault: Why it was left out, if it was.
    """

    name: str
    code: str
    distribution: str
    file: str | None
    fault: str | None = None


@dataclass(frozen=True)
class Catalogue:
    """All scorers, and all plugins whether or not they brought any.

    Attributes:
        scorers: By name.
        plugins: In the order in which they were imported.
    """

    scorers: Mapping[str, Installed]
    plugins: tuple[Plugin, ...] = ()

    @property
    def faults(self) -> tuple[str, ...]:
        """One sentence a plugin that was left out."""
        return tuple(plugin.fault for plugin in self.plugins if plugin.fault is not None)

    def __getitem__(self, name: str) -> Installed:
        """The scorer of this name.

        Raises:
            ScorerError: When there is none; says which there are, and what was left out.
        """
        if name not in self.scorers:
            faults = "".join(f" ({fault})" for fault in self.faults)
            raise ScorerError(f"there is no scorer {name!r}; installed are {', '.join(sorted(self.scorers))}.{faults}")
        return self.scorers[name]


def load_scorers() -> Catalogue:
    """Import and register every plugin; built-in scorers first, so that theirs are the names that are taken.

    Warns:
        PluginWarning: For each plugin that was left out.
    """
    found: dict[str, Installed] = {}
    modules: list[Any] = []
    plugins: list[Plugin] = []
    for name in sorted(module.name for module in iter_modules(scorers.__path__)):
        _add(import_module(f"{scorers.__name__}.{name}"), OWN, modules, found)
    for point in sorted(metadata.entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        distribution = f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value
        fault = None
        try:
            _add(point.load(), distribution, modules, found)
        except (Exception, SystemExit) as error:  # whatever a plugin does wrong, the others go on
            reason = said(error) if isinstance(error, ScorerError) else f"{type(error).__name__}: {said(error)}"
            fault = f"the plugin {point.name!r} of {distribution} was left out: {reason}"
            warnings.warn(fault, PluginWarning, stacklevel=2)
        # A malformed entry point has no module.
        file = getattr(sys.modules.get(getattr(point, "module", "")), "__file__", None)
        plugins.append(Plugin(point.name, point.value, distribution, file, fault))
    return Catalogue(found, tuple(plugins))


def _add(plugin: Any, distribution: str, modules: list[Any], found: dict[str, Installed]) -> None:
    """Takes one plugin and its scorers, or none of them.

    Args:
        plugin: What an entry point names.
        distribution: Who brings it.
        modules: The plugins that were taken; it becomes one of them.
        found: Their scorers; gets its own.

    Raises:
        ScorerError: For a plugin that is registered already or is no module, a hook that does not exist, a scorer that
            cannot be registered, or none at all.
    """
    if plugin is None:
        raise ScorerError("it names None, not a module.")
    if hasattr(plugin, f"{GROUP}_impl"):
        raise ScorerError(
            "it names the function that registers scorers; name the module, without `:` and what follows."
        )
    if any(plugin is module for module in modules):
        raise ScorerError("what it names is registered already, by another entry point.")
    # One manager each, so that what one plugin does wrong is its own and nothing has to be taken back.
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    new: dict[str, Installed] = {}
    try:
        manager.register(plugin)
        # Pluggy keeps quiet about a misspelled hook until asked.
        manager.check_pending()
        if not manager.get_hookcallers(plugin):
            raise ScorerError("it implements no hook; mark `register_scorers` with `peft_surgical.hookimpl`.")
        register: hookspecs.Register = partial(_register, new, found, distribution)
        manager.hook.register_scorers(register=register)
    except pluggy.PluginValidationError as error:
        raise ScorerError(f"{said(error)}; the hook is register_scorers(register).") from error
    if not new:
        raise ScorerError("it registers no scorer; call `register(name, scorer)` in `register_scorers`.")
    modules.append(plugin)
    found.update(new)


def _register(
    new: dict[str, Installed], taken: Mapping[str, Installed], distribution: str, name: str, scorer: Scorer
) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
        raise ScorerError(f"a scorer's name consists of letters, digits and underscores, unlike {name!r}.")
    owner = taken.get(name) or new.get(name)
    if owner is not None:
        raise ScorerError(f"the scorer name {name!r} is taken by {owner.distribution}.")
    if not callable(scorer):
        raise ScorerError(f"the scorer {name!r} is not a function.")
    parameters = list(inspect.signature(scorer).parameters.values())
    takes = bool(parameters) and parameters[0].kind not in (
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.VAR_KEYWORD,
    )
    if not takes or any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters):
        raise ScorerError(f"the scorer {name!r} must take a context, and options only with a default.")
    more = [p.name for p in parameters[1:] if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if more:
        raise ScorerError(
            f"the scorer {name!r} takes {', '.join(more)} beside the context: options must come after a `*`, as in"
            f" (context, *, {more[0]}=...)."
        )
    if any(p.kind is p.KEYWORD_ONLY and p.name == "sites" for p in parameters):
        raise ScorerError(
            f"the scorer {name!r} has an option 'sites', by which any scorer is told what to score; rename it."
        )
    new[name] = Installed(name, scorer, distribution)
