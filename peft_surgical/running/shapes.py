"""Matrices of few shapes.

oneDNN, which multiplies for torch on a processor, makes a program for each shape that it meets, and keeps up to a
thousand of them. Texts come in all lengths. Programs for each, and the holes of what was freed between them, were a
sixth of an edit's memory.
"""

# Up to here every count has its own shape: so few are not worth the filling.
_EACH = 16


def filled(count: int, multiple: int) -> int:
    """A count that stands for itself or, above 16, for all up to the next multiple."""
    return count if count <= _EACH else -(-count // multiple) * multiple
