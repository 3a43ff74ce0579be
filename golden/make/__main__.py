"""Makes the goldens of golden/data: real transformers, torch, peft and DeepSpeed.

    .venv-golden/bin/python golden/make [--golden NAME ...] [--out DIR]
    .venv-golden/bin/python golden/make --check [--golden NAME ...] [--transformers 5.17]
    .venv-golden/bin/python golden/make demo --model PATH    # the official demo: demo/command.py

NAME is a case (tiny), SUITE.CASE (loss_descent.tiny-wide) or generate.CASE; all of them by default.
Every golden is made twice, from the checkpoint on; a file is kept only when both are the same
bytes. --check writes nothing: it compares a new run with the files in DIR (compare.py says how);
exit 1 when they differ. --transformers takes a release that has an environment
(.venv-golden-RELEASE) or the path of a source tree. The files are committed in golden/data/.
"""

import os
import sys
from pathlib import Path

# Before torch starts its threads: waiting threads must not burn the other ones' time.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "dump"))

if __name__ == "__main__":
    if sys.argv[1:2] == ["demo"]:
        from demo.command import main as main_of_demo

        sys.exit(main_of_demo(sys.argv[2:]))
    from command import main

    sys.exit(main())
