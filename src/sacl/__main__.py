"""`python -m sacl`: the command line."""

import sys

from sacl.cli import main

sys.exit(main())
