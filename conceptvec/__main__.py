"""``python -m conceptvec`` is the same program as ``conceptvec``."""

import sys

from conceptvec.cli import main

if __name__ == "__main__":
    sys.exit(main())
