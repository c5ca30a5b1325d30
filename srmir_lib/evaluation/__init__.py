"""Which policy is better, and how sure that is. Read `measures` first, then `evaluate`; claims are in `claims`."""
