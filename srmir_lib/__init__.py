"""SRMIR and the reward-model methods around it, as small readable functions.

README.md has a table of the packages; start with `papers`, the equations. `srmir` on the command line is `cli`.
"""

import warnings

__version__ = "0.2.0"

# Progress bars are plain text, so that a stored notebook keeps them; tqdm would warn that it finds no widgets.
warnings.filterwarnings("ignore", message="IProgress not found")
