"""`python -m ctm` is the command `ctm`."""

import sys

from ctm.cli import main

sys.exit(main())
