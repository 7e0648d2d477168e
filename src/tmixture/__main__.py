"""`python -m tmixture` is the command line."""

import sys

from tmixture.cli import main

if __name__ == "__main__":
    sys.exit(main())
