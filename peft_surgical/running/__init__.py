"""Running a model without doing work twice or for nobody.

`suffix` runs what changes above frozen layers, `tails` what changes behind a token, and `beginnings` what all rows
begin with. `passes` says how many rows go at once, `computing` and `precision` in which arithmetic, `attention` how
heads read, `devices` and `modes` where a model takes its input and how it is left. `generation` gives greedy answers,
and `cache` keeps them on disk. `replicas`, `workers` and `at_once` share the work among threads, `sharing` among
processes; `overlapping` is for what threads have in common.
"""
