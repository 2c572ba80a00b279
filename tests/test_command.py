import configparser
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import peft_surgical

ROOT = Path(peft_surgical.__file__).parents[1]
INTERRUPTED = """
import sys
import peft_surgical_command
assert "torch" not in sys.modules

class Interrupt:
    def find_spec(self, name, *_):
        if name == "peft_surgical":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
peft_surgical_command.main()
"""


def python(code, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def test_ctrl_c_while_the_libraries_are_imported():
    done = python(INTERRUPTED, "--version")
    assert done.stderr == "Interrupted. Nothing is half written; run the command again.\n"
    assert (done.returncode, done.stdout) == (130, "")


def test_the_script_runs_the_command_without_a_notice_of_another_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    name, _, function = setup["options.entry_points"]["console_scripts"].partition("=")[2].strip().partition(":")
    assert setup["options"]["py_modules"] == name
    assert callable(getattr(import_module(name), function))
    done = python(f"from {name} import {function}; {function}()", "--version")
    said = (done.returncode, done.stdout, done.stderr)
    assert said == (0, f"peft-surgical {peft_surgical.__version__}\n", "")
