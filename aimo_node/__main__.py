"""`python -m aimo_node` is the same program as `aimo`."""

from aimo_node.cli.main import main

main()
