"""The hook that scorer plugins implement; the built-in scorers use the same one.

    import peft_surgical as ps

    @ps.hookimpl
    def register_scorers(register):
        register("my_scorer", my_scorer)

A module with such a function becomes a plugin through an entry point of its distribution, in `pyproject.toml`:

    [project.entry-points.peft_surgical]
    my_plugin = "my_package.my_module"
"""

from __future__ import annotations

from collections.abc import Callable

import pluggy

from .localizing.context import Scorer

hookspec = pluggy.HookspecMarker("peft_surgical")
hookimpl = pluggy.HookimplMarker("peft_surgical")

Register = Callable[[str, Scorer], None]
"""What `register_scorers` is given."""


@hookspec
def register_scorers(register: Register) -> None:
    """Register named scorers.

    Args:
        register: Called as `register(name, scorer)`. The name consists of letters, digits and underscores and must be
            that of no other scorer; what entry points are called does not matter. A scorer is called as
            `scorer(context, **options)` and returns `{site: scores}`; its options are its keyword-only parameters,
            each with a default and none called `sites`; the first line of its docstring says what it reads. See
            [`ScorerContext`][peft_surgical.ScorerContext].
    """
