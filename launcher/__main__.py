"""``python -m launcher`` and ``torchrun -m launcher``."""

import gc

from launcher.cli import main

if __name__ == "__main__":
    try:
        code = main()
    finally:
        # Python searches all objects for cycles before it ends, which takes seconds with torch's.
        gc.freeze()
    raise SystemExit(code)
