"""The `peft-surgical` command: it parses, checks, calls the library and translates errors.

One file a command, which `app` puts together. They share `options`, `checks` of what these ask for, `loading` of a
model, `recipes`, as a file and options ask for them, and `plans`, which dry runs tell. `launch` and `processes` are
for several processes, `allocator` for little memory. `terminal` and `tables` print, and `translate` makes lines and
exit statuses of exceptions.

`--help` and a mistyped option cost what importing the package does: PEFT's import, and torch's.

Exit status: 0 on success, 2 for wrong usage or input (one line on standard error that begins with `Error:`), 1 for a
failure of this package, 130 after Ctrl-C, 141 where nobody reads what is printed any more, as in `| head`.
"""

from .app import cli, main

__all__ = ["cli", "main"]
