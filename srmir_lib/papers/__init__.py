"""The functions that are the papers: pure, one module a paper, no models and no files. Read `srmir.py` first."""
