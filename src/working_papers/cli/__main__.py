"""`python -m working_papers.cli` is the command `working-papers`."""

from working_papers.cli import main

main()
