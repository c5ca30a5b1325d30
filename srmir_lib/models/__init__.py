"""A language model as an instrument: load it, let it generate, prefill it, embed with it.

Read `trunk` first: one frozen model whose prefill serves every probe. It stands on `loading` (by id or folder),
`kv_cache` (capture and reuse) and `embeddings` (hidden states). `generation` samples, `small` makes models with random
weights, `parallel` runs small jobs side by side.
"""
