"""What seven reward models cost (notebook A5): `limits` counts, `contestants` race, `training` is timed."""
