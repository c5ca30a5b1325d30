"""`python -m srmir_lib` is `srmir`."""

import sys

from srmir_lib.cli import main

sys.exit(main())
