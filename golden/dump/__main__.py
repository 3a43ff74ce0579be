"""Writes the trace of an implementation of DeepSeek-V3.2: `python golden/dump --help`.

The folder, and the zipped file that `ci/pyz` makes of it, run this. dsv32_dump tells the rest.
"""

import sys

from dsv32_dump import main

if __name__ == "__main__":
    sys.exit(main())
