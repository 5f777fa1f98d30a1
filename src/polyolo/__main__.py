"""`python -m polyolo`: the command line, where no script is on the path."""

import sys

from polyolo.cli import main

sys.exit(main())
