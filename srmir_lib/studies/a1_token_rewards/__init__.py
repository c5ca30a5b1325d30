"""Notebook A1: a reward for every token, with an uncertainty (AVA; Cai et al. 2024).

Read `model` first; the equations are in `papers.ava`.
"""
