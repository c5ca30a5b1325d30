"""The runner: plans, executes and records the notebooks of a preset, and starts without torch. Read `series` first."""
