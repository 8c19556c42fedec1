"""The command line; subcommands are added here."""


def main() -> None:
    """Parse the arguments and run."""
