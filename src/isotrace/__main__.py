"""`python -m isotrace`, and what `torchrun -m isotrace` starts in every process."""

from isotrace.cli import main

main()
