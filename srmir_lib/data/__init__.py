"""From prompts to preference pairs, by introspection in the lab, by labels in public files, or a person's own.

Read `introspection` first, then `pairs`: what notebook 01 does. `router` says which category a prompt is about,
`margins` how much better one answer is than another (Legend). `public_files` and `public_sets` read public data,
`own_files` and `own_sets` one's own; `check` is the command `srmir check`, `annotate_file` `srmir annotate`, `jsonl`
what the file commands share.
"""
