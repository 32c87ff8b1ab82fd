"""`python -m localhessian`, and the command `localhessian`."""

import sys


def main() -> None:
    """Run the command line, or say what it lacks."""
    try:
        from localhessian.lab.cli import main as run  # noqa: PLC0415  what it needs may be missing
    except ImportError as error:
        sys.exit(str(error))
    run()


if __name__ == "__main__":
    main()
