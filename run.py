#!/usr/bin/env python
"""The BIDS App's front door: `run.py BIDS_DIR OUTPUT_DIR {participant,group}...`.

All that happens here is handing the arguments to `pipelines.app.main` and returning its exit code.
"""

import sys

from pipelines.app import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
