"""Bayesian token rewards (notebook A1): `reader` reads, `model` believes, `training` teaches."""
