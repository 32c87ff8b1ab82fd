"""`python -m localhessian`, and the command `localhessian`: the command line, or a word on what it lacks."""

import sys

try:
    from localhessian.lab.cli import main
except ImportError as error:
    sys.exit(str(error))

if __name__ == "__main__":
    main()
