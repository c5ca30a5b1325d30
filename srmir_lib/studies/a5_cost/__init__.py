"""Notebook A5: what seven reward models must cost, what they do cost, and who pays more.

Read `limits` first: the formulas, the clock and the scale. `contestants` race, `training` measures updates.
"""
