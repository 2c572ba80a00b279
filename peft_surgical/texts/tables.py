"""The tables that come with the package, each read once."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import yaml


@cache
def read_table(name: str) -> Any:
    """A YAML file of the package's `data` folder, with plain words left as they are (`No`, `1066`)."""
    text = resources.files("peft_surgical").joinpath("data", name).read_text(encoding="utf-8")
    return yaml.load(text, Loader=yaml.BaseLoader)


def bare(name: str) -> str:
    """A name of the tables without the article that stands before it."""
    return name.removeprefix("the ")
