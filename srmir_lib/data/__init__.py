"""From prompts to preference pairs, by introspection in the lab and by labels in public files.

Read `introspection` first, then `pairs`: what notebook 01 does. `router` says which category a prompt is about,
`margins` how much better one answer is than another (Legend). `public_files` and `public_sets` read public data;
`annotate_file` is the command `srmir annotate`, `jsonl` what the file commands share.
"""
