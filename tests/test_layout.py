"""The package's folders as layers."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import peft_surgical
from peft_surgical.cli import cli

PACKAGE = Path(peft_surgical.__file__).parent


def imported_folders(file):
    """The package's folders that a file imports when it is imported itself."""
    within = file.relative_to(PACKAGE).parent.parts
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            above = within[: len(within) - node.level + 1]
            for name in [node.module] if node.module else [alias.name for alias in node.names]:
                yield (*above, *name.split("."))[0]


def test_folders_import_one_another_in_one_direction():
    folders = {path.parent.name: path.parent for path in PACKAGE.glob("*/__init__.py")}
    graph = {
        name: {found for file in folder.glob("*.py") for found in imported_folders(file)} & (folders.keys() - {name})
        for name, folder in folders.items()
    }
    assert {"staging", "texts"} <= graph["keying"]
    assert len([*TopologicalSorter(graph).static_order()]) == len(folders)


def test_a_folder_s_docstring_names_its_files():
    """But for commands and scorers, one a file, and for `tuner`, whose files are PEFT's and parts of them."""
    own = {f"cli/{name.replace('-', '_')}" for name in cli.commands}
    unnamed = set()
    for init in PACKAGE.glob("*/__init__.py"):
        folder = init.parent
        named = re.findall(r"`(\w+)`", ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))))
        unnamed |= {f"{folder.name}/{file.stem}" for file in folder.glob("[!_]*.py") if file.stem not in named}
    assert {name for name in unnamed - own if not name.startswith(("scorers/", "tuner/"))} == set()
