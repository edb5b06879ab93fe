"""``python -m rlcircuits.cli``: the command line."""

import sys

from rlcircuits.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
