"""Notebook A8: every objective, and both designs of reward models, on human judgements.

Read `pairs` first: three public sets in one form. `methods` are what learns from them, `study` is one fit after the
other, `text_model` a small causal model made from nothing.
"""
