"""`python -m minidiff`."""

import sys

from minidiff.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
