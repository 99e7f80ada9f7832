#!/usr/bin/env python
"""Run the BIDS App: `run.py BIDS_DIR OUTPUT_DIR {participant,group}...`.

Passes the arguments to `pipelines.app.main` and returns its exit code.
"""

import sys

from pipelines.app import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
