"""That what the documentation says holds: its Python runs, its commands parse, its links and reference are current."""

import ast
import importlib.util
import re
import shlex
from dataclasses import fields
from pathlib import Path

import click
import pytest
import yaml
from tokenizers import normalizers
from transformers import AutoTokenizer, OlmoConfig, OlmoForCausalLM

from peft_surgical import stages
from peft_surgical.architectures import _KNOWN
from peft_surgical.cli import cli
from peft_surgical.facts import Fact
from peft_surgical.report import METRICS
from peft_surgical.staging.recipe import Recipe
from peft_surgical.texts.fact_checks import PORTABILITY_KINDS
from tests.command_line import run
from tests.launching import start
from tests.localizing import capital, planted, word_tokenizer

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("*.md", "docs/**/*.md", "examples/**/*.md", "plugins/*/*.md")
PAGES = sorted(path.relative_to(ROOT).as_posix() for pattern in FOLDERS for path in ROOT.glob(pattern))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
NAME = "peft-surgical"
# As the package has it: tests register more.
BUILT_IN = set(_KNOWN)


def blocks(page, *languages):
    found = [(match[1], match[2]) for match in BLOCK.finditer((ROOT / page).read_text(encoding="utf-8"))]
    return [(language, text) for language, text in found if language in languages]


def prose(page):
    return BLOCK.sub("", (ROOT / page).read_text(encoding="utf-8"))


def commands_in(text):
    """The arguments of every `peft-surgical` in lines of shell."""
    for line in text.replace("\\\n", " ").splitlines():
        if NAME not in line:
            continue
        part = []
        for word in [*shlex.split(line.strip(), comments=True), "&&"]:
            if word not in ("&&", "|", ";", ">"):
                part.append(word)
                continue
            if part and part[0].rpartition("/")[2] == NAME:
                yield part[1:]
            part = []


def shown_in(text):
    """Those that a help shows as examples."""
    yield from commands_in("\n".join(line for line in text.splitlines() if line.lstrip().startswith(NAME)))


def commands(page):
    """Those of a page: in blocks, and in the text where more is given than the name of a command."""
    for language, text in blocks(page, "bash", "text"):
        yield from (commands_in if language == "bash" else shown_in)(text)
    for span in re.findall(r"`([^`]+)`", prose(page)):
        yield from (found for found in commands_in(span) if len(found) > 1)


def check_parses(arguments):
    """Has click read a command line as if to run it.

    Raises:
        click.UsageError: For a command, option, value or number of arguments that there is not.
    """
    name, *rest = arguments
    if name not in cli.commands:
        raise click.UsageError(f"No such command {name!r}.")
    cli.commands[name].make_context(name, rest, parent=click.Context(cli, info_name=NAME, **cli.context_settings))


def benchmarks_in(page):
    """The module and the arguments of each benchmark that a page runs."""
    for _, text in blocks(page, "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            if found := re.search(r"python -m (benchmarks\.[\w.]+)(.*)", line):
                yield found[1], shlex.split(found[2], comments=True)


def benchmark(name):
    """The command of a benchmark's module or package; None where it is none of click's."""
    module = importlib.import_module(name)
    module = importlib.import_module(f"{name}.__main__") if hasattr(module, "__path__") else module
    return module.main if isinstance(module.main, click.Command) else None


def builder():
    spec = importlib.util.spec_from_file_location("build_reference", ROOT / "docs" / "build_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def inner_imports(text):
    """The modules inside of the package that some Python imports from."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            found.append(node.module or "")
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [name for name in found if name.startswith("peft_surgical.")]


def slug(heading):
    """The anchor that code hosts give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-")


# The reference shows signatures, which are no statements; that it is what the docstrings say is tested below.
@pytest.mark.parametrize("page", [page for page in PAGES if "/reference/" not in page])
def test_every_python_block_compiles(page):
    for _, text in blocks(page, "python", "py"):
        compile(text, page, "exec")


# Measurements may show what goes on inside; the example of the paper rebuilds a part of `edit`.
@pytest.mark.parametrize("page", [page for page in PAGES if not re.search("/(measurements|reference)/", page)])
def test_pages_use_public_names_only(page):
    for _, text in blocks(page, "python", "py"):
        assert not inner_imports(text)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_use_public_names_only(path):
    assert not inner_imports(path.read_text(encoding="utf-8"))


def test_an_inner_import_would_be_found():
    assert inner_imports("import peft_surgical as ps\nfrom peft_surgical.stages import RECIPES\n") == [
        "peft_surgical.stages"
    ]
    assert inner_imports("import numpy, peft_surgical.sites") == ["peft_surgical.sites"]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_line_parses(page):
    for arguments in commands(page):
        try:
            check_parses(arguments)
        except click.UsageError as error:
            pytest.fail(f"{NAME} {shlex.join(arguments)}: {error.format_message()}")


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith(("README", "docs/"))])
def test_every_benchmark_has_the_options_it_is_run_with(page):
    for name, arguments in benchmarks_in(page):
        if command := benchmark(name):
            # Not their values: the files are made by other commands.
            command.make_parser(click.Context(command)).parse_args(list(arguments))


def test_the_benchmarks_are_found():
    names = {name for page in PAGES for name, _ in benchmarks_in(page)}
    assert names >= {"benchmarks.facts", "benchmarks.speed", "benchmarks.speed.memory", "benchmarks.chat"}
    assert benchmark("benchmarks.speed") is not None
    command = benchmark("benchmarks.facts")
    parser = command.make_parser(click.Context(command))
    with pytest.raises(click.NoSuchOption):
        parser.parse_args(["a.yaml", "--modle", "demo"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("peft-surgical edt fact.yaml --out x", "No such command"),
        ("peft-surgical edit fact.yaml", "Missing option"),
        (".venv/bin/peft-surgical edit fact.yaml --out x --tpo 3", "No such option"),
        ("cd x && peft-surgical edit a.yaml b.yaml --out x # twice", "unexpected extra argument"),
        ("peft-surgical localize \\\n  fact.yaml --out x --top 0", "is not in the range"),
    ],
)
def test_a_wrong_command_line_would_be_found(line, message):
    [arguments] = commands_in(line)
    with pytest.raises(click.UsageError) as raised:
        check_parses(arguments)
    assert message in raised.value.format_message()


def test_the_pages_hold_commands_and_python():
    found = {page: (len(list(commands(page))), len(blocks(page, "python"))) for page in PAGES}
    for page in ("README.md", "docs/tutorial.md", "docs/how-to/publish-an-edit.md"):
        assert min(found[page]) >= 2, page


def test_options_named_in_the_text_exist():
    known = {option for command in cli.commands.values() for parameter in command.params for option in parameter.opts}
    # Of every command, of the group and of pytest.
    known |= {"--help", "--version", "--run-slow"}
    for page in PAGES:
        for option in re.findall(r"`(--[a-z-]+)[^`]*`", prose(page)):
            assert option in known, f"{page}: {option}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / page).parent / path if path else ROOT / page
        assert there.exists(), f"{page}: {target}"
        if anchor:
            text = BLOCK.sub("", there.read_text(encoding="utf-8"))
            headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            assert anchor in [slug(heading) for heading in headings], f"{page}: {target}"


def test_the_index_names_every_page():
    linked = {(ROOT / "docs" / target.partition("#")[0]).resolve() for target in LINK.findall(prose("docs/README.md"))}
    for page in PAGES:
        if page.startswith("docs/") and page != "docs/README.md":
            assert (ROOT / page).resolve() in linked, page
    assert all(path.resolve() in linked for path in ROOT.glob("examples/*.py"))
    assert (ROOT / "SECURITY.md").resolve() in linked


def test_the_fact_file_page_has_every_key_and_metric_and_a_valid_example():
    text = prose("docs/fact-file.md")
    names = [f.name for f in fields(Fact) if f.name != "source"]
    assert not [name for name in (*names, *METRICS) if f"`{name}`" not in text]
    (_, smallest), (_, example) = blocks("docs/fact-file.md", "yaml")
    assert Fact.from_dict(yaml.safe_load(smallest)).controls
    fact = capital(**yaml.safe_load(example))
    assert [question.kind for question in fact.portability] == list(PORTABILITY_KINDS)


def test_the_known_architectures_are_those_that_the_page_names():
    (line,) = re.findall(r"Known by their `model_type` are (.*)\.", prose("docs/how-to/add-an-architecture.md"))
    assert set(re.findall(r"`(\w+)`", line)) == BUILT_IN


@pytest.mark.parametrize("page", ["python.md", "command.md"])
def test_the_reference_is_what_the_docstrings_say(page):
    built = builder()
    assert set(built.PAGES) == {path.name for path in built.FOLDER.iterdir()}
    text = (built.FOLDER / page).read_text(encoding="utf-8")
    assert text == built.PAGES[page](), "run `python docs/build_reference.py`"


def test_the_reference_does_not_depend_on_the_terminal(monkeypatch):
    built = builder()
    wide = built.command()
    monkeypatch.setenv("COLUMNS", "40")
    assert built.command() == wide


def test_every_command_is_there_with_an_example():
    _, *sections = re.split(r"^## ", (ROOT / "docs/reference/command.md").read_text(encoding="utf-8"), flags=re.M)
    texts = {section.partition("\n")[0]: section for section in sections}
    assert set(texts) == {NAME, *cli.commands}
    for name in cli.commands:
        assert name in [arguments[0] for arguments in shown_in(texts[name])]


def test_completion_of_bare_names_names_every_command():
    text = (ROOT / "docs/how-to/shell-completion.md").read_text(encoding="utf-8")
    assert re.search(r'complete -o default -W "(.*)"', text)[1].split() == list(cli.commands)


@pytest.fixture(scope="module")
def place(tmp_path_factory, fact_text):
    """A folder in which the documentation's paths exist, with a tiny model in the place of the demo model."""
    folder = tmp_path_factory.mktemp("reader")
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    planted().save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    fact = folder / "examples" / "facts" / "france_capital.yaml"
    fact.parent.mkdir(parents=True)
    fact.write_text(fact_text)
    asked = {
        key: [text.replace("france", "italy") for text in getattr(capital(), key)] for key in ("prompts", "held_out")
    }
    controls = [{"prompt": "where is lyon ?", "answer": ["france"]}]
    second = capital(subject="italy", old=["rome"], new=["paris"], contrast=["france"], controls=controls, **asked)
    (folder / "made").mkdir()
    (folder / "made" / "japan.yaml").write_text(yaml.safe_dump(second.to_dict()))
    return folder


@pytest.fixture
def reader(place, monkeypatch):
    """Does what a page says, from its first block to its last, but for what `skip` is in."""
    monkeypatch.chdir(place)
    for name in stages.RECIPES:
        # Steps so short that no scale of the tiny model turns negative, which a dial refuses.
        short = Recipe(steps=2, step_kl=1e-14, variants=0, neighbours=2, general=4)
        monkeypatch.setitem(stages.RECIPES, name, short)

    def follow(page, *skip, **names):
        for language, text in blocks(page, "bash", "python"):
            if any(part in text for part in skip):
                continue
            if language == "python":
                exec(compile(text.replace('"demo"', '"tiny"'), f"<{page}>", "exec"), names)
            for arguments in commands_in(text) if language == "bash" else ():
                result = run(*("tiny" if word == "demo" else word for word in arguments))
                assert result.exit_code == 0, f"{shlex.join(arguments)}: {result.output}"
        return names

    return follow


def test_the_documented_way(reader, place, capsys):
    """One after the other: the how-to's use what the tutorial left."""
    # `new` is tested in `test_cli_new.py`, with a question in the words that the tiny model has.
    names = reader("docs/tutorial.md", "pip install", "peft-surgical new")
    assert names["report"].verdict() in capsys.readouterr().out
    assert {path.name for path in (place / "out" / "france").iterdir()} >= {"edit", "unlearn", "learn", "report.html"}
    assert (place / "out" / "merged" / "model.safetensors").is_file()

    names = reader("docs/how-to/publish-an-edit.md", "hf upload", "peft-surgical new")
    assert names["model"].base_model.active_adapters == ["france", "japan"]
    assert (place / "out" / "both" / "adapter_model.safetensors").is_file()
    card = (place / "out" / "publish" / "README.md").read_text(encoding="utf-8")
    assert names["report"].verdict() in card
    assert "| base | unlearned | edited |" in card
    assert (place / "out" / "check" / "report.json").is_file()

    names = reader("docs/how-to/use-in-a-training-loop.md", "python examples")
    assert float(names["divergence"].detach()) > 0
    assert names["model"].base_model.active_adapters == ["default", "second"]
    assert len(names["config"].components) == 3

    # Its sentence has capitals, and the tiny model's words have none.
    tokenizer = AutoTokenizer.from_pretrained(place / "tiny")
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save_pretrained(place / "tiny")
    names = reader("docs/how-to/come-from-easyedit.md")
    assert names["stage"].record.steps > 0
    assert (place / "out" / "lyon" / "adapter_model.safetensors").is_file()


def test_the_python_of_the_readme(reader, place, monkeypatch):
    monkeypatch.chdir(place / "examples" / "..")
    (text,) = (text for _, text in blocks("README.md", "python") if "ps.edit(" in text)
    names = {}
    source = text.replace('"demo"', '"tiny"').replace('"out/', '"readme/')
    exec(compile(source, "<README.md>", "exec"), names)
    assert {path.name for path in (place / "readme").iterdir()} == {
        ".peft_surgical",
        "france_python",
        "unlearn",
        "learn",
        "edit",
    }
    (load,) = (text for _, text in blocks("README.md", "python") if "peft_surgical need not" in text)
    exec(load.replace('"out/france/', '"readme/france_python/').replace('"demo"', '"tiny"'), names)
    # What the one call leaves and what the steps leave is the same edit.
    one, steps = (names["ps"].Edit.load(place / "readme" / path) for path in ("france_python/edit", "edit"))
    assert one.modules.keys() == steps.modules.keys()


def test_the_command_with_an_architecture_of_ones_own(place, tmp_path):
    tokenizer = word_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    OlmoForCausalLM(OlmoConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "my_model")
    tokenizer.save_pretrained(tmp_path / "my_model")
    (tmp_path / "my_package.py").write_text(
        "import peft_surgical as ps\n"
        "from peft_surgical.architectures import architecture_of\n"
        "ps.register_architecture('olmo', architecture_of('llama'))\n"
    )
    (tmp_path / "fact.yaml").write_text((place / "examples" / "facts" / "france_capital.yaml").read_text())
    (command,) = (text for _, text in blocks("docs/how-to/add-an-architecture.md", "bash"))
    _, *arguments = shlex.split(command)
    with (tmp_path / "said").open("w") as said:
        process = start(arguments, said.fileno(), said.fileno(), cwd=tmp_path)
        process.join()
    assert process.exitcode == 0, (tmp_path / "said").read_text()
    assert (tmp_path / "out" / "where" / "localization.json").is_file()
