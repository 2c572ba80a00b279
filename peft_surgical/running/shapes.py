"""Matrices of few shapes.

oneDNN, which multiplies for torch on a processor, makes a program for each shape that it meets, and keeps a thousand
of them, of some hundred kilobytes each. Texts come in all lengths: in their own an edit of a small model ended with
250 MiB more of programs, and with the holes of what was freed between them.
"""

# Up to here every count has its own shape: so few are not worth the filling.
_EACH = 16


def filled(count: int, multiple: int) -> int:
    """A count that stands for itself or, above 16, for all up to the next multiple."""
    return count if count <= _EACH else -(-count // multiple) * multiple
