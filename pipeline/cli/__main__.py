"""`python -m pipeline.cli` is `statebelt`."""

from pipeline.cli import main

main()
