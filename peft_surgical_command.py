"""The script `peft-surgical`.

It stands beside the package: importing any part of that imports torch, which takes seconds. Ctrl-C in those seconds
ends the command as it does later.
"""

import logging
import os
import sys


def main() -> None:
    """The console script."""
    if "--debug" not in sys.argv and os.environ.get("PEFT_SURGICAL_DEBUG", "") in ("", "0"):
        # Where bitsandbytes is installed, PEFT imports it, and it says that its kernels for processors are not there.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        from peft_surgical.cli import main as command
    except KeyboardInterrupt:
        print("Interrupted. Nothing is half written; run the command again.", file=sys.stderr)
        sys.exit(130)
    command()
