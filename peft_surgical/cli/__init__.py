"""The `peft-surgical` command: it parses, checks, calls the library and translates errors.

One file a command. Each imports the library inside its function, because torch and transformers take seconds that
`--help` and a mistyped option need not cost.

Exit status: 0 on success, 2 for wrong usage or input (one line on standard error that begins with `Error:`), 1 for a
failure of this package, 130 after Ctrl-C.
"""

from .app import cli, main

__all__ = ["cli", "main"]
