"""List the commands, or run one: ``python -m hpo worker --study quickstart``."""

from .commands import main

if __name__ == "__main__":
    main()
