"""One reward, one policy: what TRL calls, how a policy is trained, what is watched meanwhile.

Read `reward` first: seven scores become one reward. `groups` samples answers and keeps the best of each group,
`training` is SFT, DPO and GRPO by TRL's own trainers, with `checkpoints`; `hardness` scales advantages by how hard a
prompt is; `callbacks` and `hacking_alarm` look at what no reward pays for. Nothing here knows a reward model: anything
with `.categories`, `.score` and `.calibration` will do.
"""
