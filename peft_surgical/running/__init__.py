"""Running a model without doing work twice or for nobody.

`suffix` runs what changes above frozen layers and `tails` what changes behind a token; `passes` says how many rows
go at once, `computing` and `precision` in which arithmetic. `generation` gives greedy answers, `cache` keeps them on
disk, and `sharing` shares all of it among processes.
"""
