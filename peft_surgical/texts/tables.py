"""The texts and tables that come with the package; a table is read once."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import yaml


@cache
def read_table(name: str) -> Any:
    """A YAML file of the package's `data` folder, with plain words left as they are (`No`, `1066`)."""
    return yaml.load(read_data(name), Loader=yaml.BaseLoader)


def read_data(name: str) -> str:
    """A text file of the package's `data` folder."""
    return resources.files("peft_surgical").joinpath("data", name).read_text(encoding="utf-8")


def bare(name: str) -> str:
    """A name of the tables without the article that stands before it."""
    return name.removeprefix("the ")
