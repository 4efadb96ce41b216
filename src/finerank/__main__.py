"""`python -m finerank`: the command where its script is not on the path."""

from finerank.cli.app import main

if __name__ == "__main__":
    main()
