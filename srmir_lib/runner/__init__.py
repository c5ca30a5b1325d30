"""The series as a whole: `srmir run`, `seeds`, `status`, `report`, `bless`. Starts without torch.

Read `series` first: check everything, run what is not up to date, lose nothing. `notebook` is what a notebook says
about itself, `stage` its place in the series, `execute`, `workers` and `kernel` run it, `manifest` is the record it
leaves. `new_preset` writes the parameter files of `srmir new-preset`.
"""
