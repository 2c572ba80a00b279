import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peft_surgical.errors import SelectionError
from peft_surgical.ranges import united_index
from peft_surgical.tuner.coordinates import Coordinates

INDICES = st.sets(st.integers(0, 40), min_size=1)


def test_spec_round_trip():
    spec = {"side": "input", "ranges": [[0, 4], [8, 9]]}
    coordinates = Coordinates.from_spec("m", spec)
    assert coordinates.to_spec() == spec
    assert Coordinates.from_spec("m", coordinates) == coordinates
    assert (coordinates.n, coordinates.stop) == (5, 9)
    assert coordinates.index().tolist() == [0, 1, 2, 3, 8]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("input", "exactly the keys side and ranges"),
        ({"side": "input"}, "exactly the keys side and ranges"),
        ({"side": "left", "ranges": [[0, 1]]}, "must be 'input' or 'output', got 'left'"),
        ({"side": "input", "ranges": []}, "non-empty list"),
        ({"side": "input", "ranges": "ab"}, "non-empty list"),
        ({"side": "input", "ranges": [[0, 1, 2]]}, "two integers"),
        ({"side": "input", "ranges": [[0, 1.0]]}, "two integers"),
        ({"side": "input", "ranges": [[False, True]]}, "two integers"),
        ({"side": "input", "ranges": ["ab"]}, "two integers"),
        ({"side": "input", "ranges": [[3, 3]]}, r"got \[3, 3\]"),
        ({"side": "input", "ranges": [[-1, 3]]}, r"got \[-1, 3\]"),
        ({"side": "input", "ranges": [[4, 6], [0, 2]]}, r"\[0, 2\] begins before 6"),
        ({"side": "input", "ranges": [[0, 4], [3, 6]]}, r"\[3, 6\] begins before 4"),
        (Coordinates("left", ((0, 1),)), "must be 'input' or 'output', got 'left'"),
        (Coordinates("input", ((4, 6), (0, 2))), r"\[0, 2\] begins before 6"),
    ],
)
def test_malformed_specs_are_refused_with_module_and_value(spec, message):
    with pytest.raises(SelectionError, match=message) as error:
        Coordinates.from_spec("layers.3.up", spec)
    assert "layers.3.up" in str(error.value)


@given(INDICES)
def test_single_indices_are_held_exactly_in_as_few_ranges_as_possible(indices):
    coordinates = Coordinates("output", united_index(indices))
    assert set(coordinates.index().tolist()) == indices
    assert all(a[1] < b[0] for a, b in zip(coordinates.ranges, coordinates.ranges[1:], strict=False))


@given(INDICES, st.integers(0, 5))
def test_pieces_tile_the_axis(indices, beyond):
    coordinates = Coordinates("input", united_index(indices))
    width = coordinates.stop + beyond
    pieces = coordinates.pieces(width)
    assert all(length > 0 for length, _ in pieces)
    mask = torch.cat([torch.full((length,), selected) for length, selected in pieces])
    assert mask.nonzero().flatten().tolist() == sorted(indices)
    assert len(mask) == width
    assert coordinates.covers(width) == (len(indices) == width)


def test_union_joins_what_touches_or_overlaps():
    assert Coordinates.union("input", [(4, 6), (0, 2), (2, 3), (5, 9)]).ranges == ((0, 3), (4, 9))
    assert Coordinates.union("input", [(0, 9), (2, 4)]).ranges == ((0, 9),)
