"""The subcommands of `parity`, a module each.

A module has `add_arguments(parser)` and `run(args) -> int`, the exit status, and a row
in `parity.cli.COMMANDS`. It is imported only when its command is given.
"""
