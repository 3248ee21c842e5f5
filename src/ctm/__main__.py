"""`python -m ctm` is the command `ctm`."""

import sys

from ctm.cli import main

if __name__ == "__main__":  # accelerate's and torch's workers import this file again
    sys.exit(main())
