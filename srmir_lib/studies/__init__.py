"""What one notebook needs alone. Nothing in the library imports this; read that notebook first.

`a1_token_rewards`, `a2_reranking`, `a5_cost` and `a8_real_pairs` belong to notebooks A1, A2, A5 and A8, `objectives` to
03, `refreshed` to 05. A2 takes its clock, and what a layer costs, from `a5_cost.limits`.
"""
