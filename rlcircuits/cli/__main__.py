"""``python -m rlcircuits.cli``: the command line."""

import sys

from rlcircuits.cli.main import main

sys.exit(main())
