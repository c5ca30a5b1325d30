"""`python -m srmir_lib` is `srmir`."""

import sys

from srmir_lib.cli import main

if __name__ == "__main__":
    sys.exit(main())
