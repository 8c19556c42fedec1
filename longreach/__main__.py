"""`python -m longreach`, the same as the command `longreach` (which torchrun needs a module for)."""

from longreach.cli import main

if __name__ == "__main__":
    main()
