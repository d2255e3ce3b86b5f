"""The command lines: each file beside this one that ends in run_tool is typed as python tools/NAME.py."""
