"""The package's folders and modules as layers."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import peft_surgical
from peft_surgical.cli import cli

PACKAGE = Path(peft_surgical.__file__).parent


# What imports something above itself. That is put up with here, and nowhere else: texts are read for the sake of a
# fact that is checked by them, scorers are looked up by name where scores are asked for, and of several processes one
# shows progress.
BACK = {("texts", "facts"), ("localizing", "plugins"), ("progress", "running")}


def imported(file):
    """The package's folders and modules beside them that a file imports when it is imported itself."""
    within = file.relative_to(PACKAGE).parent.parts
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            above = within[: len(within) - node.level + 1]
            for name in [node.module] if node.module else [alias.name for alias in node.names]:
                yield (*above, *name.split("."))[0]


def layers():
    """What each folder, and each module beside the folders, imports of the others."""
    files = {path.parent.name: [*path.parent.glob("*.py")] for path in PACKAGE.glob("*/__init__.py")}
    files |= {path.stem: [path] for path in PACKAGE.glob("[!_]*.py")}
    return {
        name: {found for file in own for found in imported(file)} & (files.keys() - {name})
        for name, own in files.items()
    }


def test_folders_and_modules_import_one_another_in_one_direction():
    graph = layers()
    assert {"staging", "texts"} <= graph["keying"]
    assert {"staging", "running"} <= graph["stages"]
    forth = {name: {found for found in below if (name, found) not in BACK} for name, below in graph.items()}
    assert len([*TopologicalSorter(forth).static_order()]) == len(graph)


@pytest.mark.parametrize(("name", "above"), sorted(BACK))
def test_a_known_way_back_is_one_still(name, above):
    graph = layers()
    assert above in graph[name]
    below, seen = [above], set()
    while below:
        seen.add(found := below.pop())
        below += graph[found] - seen
    assert name in seen


def test_a_folder_s_docstring_names_its_files():
    """But for commands and scorers, one a file, and for `tuner`, whose files are PEFT's and parts of them."""
    own = {f"cli/{name.replace('-', '_')}" for name in cli.commands}
    unnamed = set()
    for init in PACKAGE.glob("*/__init__.py"):
        folder = init.parent
        named = re.findall(r"`(\w+)`", ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))))
        unnamed |= {f"{folder.name}/{file.stem}" for file in folder.glob("[!_]*.py") if file.stem not in named}
    assert {name for name in unnamed - own if not name.startswith(("scorers/", "tuner/"))} == set()
