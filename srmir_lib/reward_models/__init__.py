"""One score for every kind of harm, in three designs. Start with `shadow`, then `fit`."""
