"""SRMIR and the reward-model methods around it, as small readable functions. See README.md."""

__version__ = "0.1.0"
