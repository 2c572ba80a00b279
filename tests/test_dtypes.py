import pytest
import torch

from peft_surgical.dtypes import DTYPES, dtype_name


@pytest.mark.parametrize("name", sorted({*DTYPES} - {"auto"}))
def test_a_dtype_is_called_what_a_user_calls_it(name):
    assert dtype_name(DTYPES[name]) == name


def test_a_dtype_that_nobody_chooses_has_its_name_without_a_module():
    assert dtype_name(torch.float8_e4m3fn) == "float8_e4m3fn"
