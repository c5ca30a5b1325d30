"""The equations of the papers, as pure functions: no models, no files, no settings.

Read `srmir` first: the introspective question, Bradley-Terry, the linear and the categorized reward. Then `legend`
(margins), `pcrm` (limits on gaps), `ava` (a reward for every token), `rbrm` (a model's own states, confidence), `grpo`
(advantages within a group) and `dr_irl` (advantages scaled by how hard a prompt is).
"""
