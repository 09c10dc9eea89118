"""The command line in a checkout: `python cli.py convert ...`. The wheel has `weightmap` and `convert` instead."""

from converters.commands import main

if __name__ == "__main__":
    main()
