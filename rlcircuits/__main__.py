"""``python -m rlcircuits``: the command line."""

import runpy

runpy.run_module("rlcircuits.cli", run_name="__main__", alter_sys=True)
