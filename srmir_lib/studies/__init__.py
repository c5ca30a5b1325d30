"""What one notebook needs alone. Nothing in the library imports this; read that notebook first.

`a1_token_rewards`, `a5_cost` and `a8_real_pairs` belong to notebooks A1, A5 and A8, `objectives` to 03.
"""
