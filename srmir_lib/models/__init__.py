"""A language model as an instrument: loaded, asked, read once. Start with `trunk`."""
