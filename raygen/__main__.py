"""`python -m raygen` is the command `raygen`."""

from raygen.cli import main

main()
