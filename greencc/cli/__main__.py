"""`python -m greencc.cli`."""

from greencc.cli.main import main

main()
