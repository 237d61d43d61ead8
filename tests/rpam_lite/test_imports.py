"""What is imported when: the command line answers at once, and the bare wheel starts without any extra."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from rpam_lite.errors import EXTRA_OF
from rpam_lite.pipeline.names import STAGE_HELP
from rpam_lite.pipeline.trip import STAGES

# Beside what the extras bring: each takes tenths of a second, or imports something that does.
SLOW = {"numpy", "psutil", "scipy", "yaml", "huggingface_hub", "safetensors", "jinja2", "rpam_lite.recipe", "quant"}
# Typer itself imports it to read a command's arguments.
SLOW_BEFORE_A_COMMAND = {"pydantic"}

SHOW = "import json, sys; print(json.dumps(sorted(sys.modules)))"
RUN = """
import sys
sys.argv = ["rpam", *{arguments}]
from rpam_lite.cli import main
try:
    main()
except SystemExit:
    pass
"""


def imported(code: str) -> set[str]:
    """Names of all modules that a fresh interpreter has imported after some code."""
    done = subprocess.run([sys.executable, "-c", f"{code}\n{SHOW}"], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["fit", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    names = imported(RUN.format(arguments=arguments))
    assert "rpam_lite.cli" in names
    slow = EXTRA_OF.keys() | SLOW | (SLOW_BEFORE_A_COMMAND if len(arguments) == 1 else set())
    heavy = sorted(names & slow)
    assert not heavy, f"import inside the command that needs it: {', '.join(heavy)}"


def test_the_package_itself_imports_nothing_but_itself() -> None:
    assert {name for name in imported("import rpam_lite") - imported("") if name.split(".")[0] != "rpam_lite"} == set()


def test_the_command_line_knows_every_stage_in_its_order() -> None:
    assert list(STAGE_HELP) == list(STAGES)
