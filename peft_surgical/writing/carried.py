"""What stands beside a model's weights and is neither its nor its tokenizer's to save, but goes with them."""

from __future__ import annotations

import shutil
from pathlib import Path

# A vocabulary that other programs convert, how pictures and sound are read, and what may be done with the weights.
CARRIED = (
    "tokenizer.model",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "LICENSE*",
    "NOTICE*",
)


def carry(source: Path, folder: Path) -> None:
    """Copies what stands beside the weights in one folder into another, where that does not have it.

    Raises:
        OSError: If a file cannot be read or written.
    """
    for pattern in CARRIED:
        for file in sorted(source.glob(pattern)):
            if file.is_file() and not (folder / file.name).exists():
                # Not the permissions, and of a link the file that it leads to, as the hub's cache has them.
                shutil.copyfile(file, folder / file.name)
