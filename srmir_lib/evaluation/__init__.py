"""Who is better, and how sure: referees, measures, accuracy on pairs, claims over towns, figures.

Read `evaluate` first: the same questions to every policy, ruled on by one of `referees`, summed up by `measures`.
`reward_accuracy` and `bag_of_words` ask reward models and their plainest rival, `comparison` sets policies side by
side, `claims` decides over towns, `dials` follows policies from one kind of town to another. `plots`, `pictures`
and `training_report` draw; `group_report` follows one group of answers through GRPO.
"""
