"""The guide to porting does what it says, block after block."""

import re
from pathlib import Path
from typing import Any

from parity.runs import run_pair

DOCS = Path(__file__).parents[2] / "docs"


def test_the_worked_example() -> None:
    text = (DOCS / "porting.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert len(blocks) == 9
    scope: dict[str, Any] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"porting.md, block {number + 1}", "exec"), scope)
    (pair,) = scope["PAIRS"]
    assert not run_pair(pair, "float32", examples=3).failures


def test_the_job_names_commands_that_exist() -> None:
    text = (DOCS / "ci-example.yml").read_text()
    from parity.cli import Parser
    from parity.commands.check import add_arguments

    parser = Parser()
    add_arguments(parser)
    command = re.search(r"run: parity check (.*)", text)
    assert command is not None
    parser.parse_args(command[1].split())
