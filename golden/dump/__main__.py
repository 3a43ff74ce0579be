"""Runs an implementation of DeepSeek-V3.2 and writes its trace file: python golden/dump --help."""

import sys

from dsv32_dump import main

if __name__ == "__main__":
    sys.exit(main())
