"""The dtypes that numbers are held and computed in, by name."""

from __future__ import annotations

import torch

# By the names that a user gives; what `auto` is depends on where it is asked for.
DTYPES: dict[str, str | torch.dtype] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def dtype_name(dtype: torch.dtype) -> str:
    """What a report, a file or a message calls a dtype.

    ```py
    >>> dtype_name(torch.bfloat16)
    'bfloat16'
    ```
    """
    return str(dtype).removeprefix("torch.")
