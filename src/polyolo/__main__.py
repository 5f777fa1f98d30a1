"""`python -m polyolo`: the command line without the script that an installation puts on the path."""

import sys

from polyolo.cli import main

sys.exit(main())
