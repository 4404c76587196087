"""`python -m evalmode`."""

import sys

from evalmode.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
