"""Seven scores of an answer, one a category of harm, in three designs.

Read `shadow` first: the interface, and what a folder of reward models holds. `shared` is one trunk with seven `probes`,
`separate` a LoRA classifier for each category, `pooled` one encoder with seven outputs. `config` and `pairs` are what
they share before they train, `fit` trains several sets, `calibration` puts scores on one scale, `score_file` is the
command `srmir score`, `preset_facts` what `srmir new-preset` has to know of a model and of pairs. `readouts` scores
answers by a model's own states, and `rerank_file`, the command `srmir rerank`, makes pairs by them.
"""
