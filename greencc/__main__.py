"""`python -m greencc`: the command line without an installed script."""

from greencc.cli import main

main()
