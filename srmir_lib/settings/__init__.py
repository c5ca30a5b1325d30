"""What each notebook is told: typed, bounded, with one default in one place. Nothing here imports torch.

Read `base` first; then the file of the notebook you are in.
"""
