"""python -m dsv32_verify"""

import sys

from . import main

sys.exit(main())
