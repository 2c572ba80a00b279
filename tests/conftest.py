"""What all tests share: no network, the real demo model once a session, and slow tests only when asked for."""

import gc
import hashlib
import os
import random
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports the hub's client
for name in [name for name in os.environ if name.startswith("TQDM_")]:
    del os.environ[name]  # before anything imports tqdm, which reads them then
if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads of several workers wait for each other; said before anything imports torch.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The first example may take long where something is imported or compiled. The same examples each time: what is not
# looked for should not be found by chance in somebody else's change.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tests")

# What a terminal can show, and of how many processes this one is. A test that is about them sets its own.
CALLERS = ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "COLUMNS", "LINES")
CALLERS += ("WORLD_SIZE", "RANK", "LOCAL_RANK", "ACCELERATE_USE_FSDP")

LEFT_OUT = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[LEFT_OUT] = []
    if config.getoption("--run-slow"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    items[:] = [item for item in items if item not in slow]
    config.hook.pytest_deselected(items=slow)
    config.stash[LEFT_OUT] = [item.nodeid for item in slow]


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What was imported and collected stays, and is not looked through each time that garbage is."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Every test draws its own numbers, whatever ran before it in the same process."""
    seed = zlib.crc32(item.nodeid.encode())
    random.seed(seed)
    if "numpy" in sys.modules:  # tests of what needs neither library do not wait for it
        sys.modules["numpy"].random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(LEFT_OUT, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    # Every worker collects all tests, and so leaves out the same.
    if hasattr(node, "workeroutput"):
        node.config.stash[LEFT_OUT] = node.workeroutput["left_out"]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    left_out = config.stash.get(LEFT_OUT, [])
    if left_out:
        terminalreporter.section("left out, being slow (--run-slow runs them)")
        for name in left_out:
            terminalreporter.write_line(name)


def fingerprint(model: Any) -> str:
    """A digest of a model's modules, parameters and buffers."""
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        digest.update(f"{name}:{type(module).__qualname__}:{module.training}:{'forward' in vars(module)}".encode())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().cpu().numpy().data)
    return digest.hexdigest()


@pytest.fixture(scope="session", autouse=True)
def callers_environment() -> Iterator[None]:
    """Nothing that the caller's terminal or launcher has set decides what is tested, here and in processes of ours."""
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLERS:
            patch.delenv(name, raising=False)
        patch.setenv("TERM", "xterm-256color")
        yield


@pytest.fixture(scope="session")
def demo() -> Iterator[tuple[Any, Any]]:
    """The demo model in float32 and its tokenizer. Tests look at it and leave it as it was, which is checked."""
    import torch

    from peft_surgical.models import load_model

    model, tokenizer = load_model("demo", dtype="float32")
    before = fingerprint(model)
    assert model.dtype == torch.float32
    yield model, tokenizer
    assert fingerprint(model) == before, "a test changed the demo model; work on a copy of it"


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the tiny model with a planted fact, and its tokenizer."""
    from .localizing import planted, word_tokenizer

    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    planted().save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def fact_text() -> str:
    """The planted fact, as a fact file."""
    from .localizing import capital

    return yaml.safe_dump(capital().to_dict())


@pytest.fixture
def fact_file(tmp_path: Path, fact_text: str) -> Path:
    """The planted fact in a file of its own."""
    path = tmp_path / "fact.yaml"
    path.write_text(fact_text)
    return path


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model is an error: the command must not have come so far."""
    import peft_surgical
    from peft_surgical.loading import demo

    def load_model(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(peft_surgical, "load_model", load_model)
    monkeypatch.setattr(demo, "demo_folder", load_model)


@pytest.fixture
def few_carried_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of each kind of prompt that the package carries."""
    carry_few_prompts(monkeypatch)


@pytest.fixture(scope="module")
def few_carried_prompts_throughout() -> Iterator[None]:
    """The same for all tests of a module, and for what they share."""
    with pytest.MonkeyPatch.context() as patch:
        carry_few_prompts(patch)
        yield


def carry_few_prompts(patch: pytest.MonkeyPatch) -> None:
    from peft_surgical.staging import retain

    everyday, general = retain.everyday_prompts()[:3], retain.general_prompts()[:3]
    patch.setattr(retain, "everyday_prompts", lambda: everyday)
    patch.setattr(retain, "general_prompts", lambda: general)


@pytest.fixture
def fake_model(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Loading a model gives a small one with a planted fact; holds what was asked for."""
    import peft_surgical
    from peft_surgical.loading import demo
    from tests.localizing import planted, word_tokenizer

    model, tokenizer, asked = planted(), word_tokenizer(), {}

    def load_model(name: str, **options: Any) -> tuple[Any, Any]:
        asked.update(options, name=name)
        return model, tokenizer

    monkeypatch.setattr(peft_surgical, "load_model", load_model)
    monkeypatch.setattr(demo, "is_to_be_fetched", lambda: False)
    return asked


@pytest.fixture
def experts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model with experts in the place of an MLP, of a type that is registered in Llama's layout."""
    from peft_surgical import architectures
    from tests.tiny import tiny_experts

    monkeypatch.setitem(architectures._KNOWN, "mixtral", architectures.architecture_of("llama"))
    return tiny_experts()


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts entry points in the place of those that are installed."""
    from peft_surgical import plugins

    def install(*points: Any) -> None:
        monkeypatch.setattr(plugins.metadata, "entry_points", lambda group: list(points))

    return install
