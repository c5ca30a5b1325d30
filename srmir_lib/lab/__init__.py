"""The lab: a miniature town with by-laws, where the truth about harm is known exactly.

Read `world` first: acts, by-laws, and what the base model wrongly believes. `grammar` says how the town talks, `tasks`
are sums with one right answer, `corpus` is all that the base model has read (`CURRICULUM`), `pretraining` builds it
(with `muon`), `pool` is what notebook 01 collects, `town` what it shows of the town and its model, `referee` the exact
parser that rules on answers, `asked` how a policy weighs refusal against deed, `harm` what margins ought to follow.
"""
