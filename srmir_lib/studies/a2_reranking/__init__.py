"""Notebook A2: a pool of answers, ranked again by the policy's own states while it trains.

Read `rounds` first: labels, the pool, and training in rounds. `course` follows order and distribution, `cost` counts
and times, `says` asks the same model in words.
"""
