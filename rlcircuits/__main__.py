"""``python -m rlcircuits``: the command line."""

import runpy

if __name__ == "__main__":
    runpy.run_module("rlcircuits.cli", run_name="__main__", alter_sys=True)
