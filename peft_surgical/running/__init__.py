"""Running a model without doing work twice or for nobody.

`suffix` runs what changes above frozen layers, `tails` what changes behind a token, and `beginnings` what all rows
begin with; `forwards` puts functions in the place of modules' own for that, and says what an output head reads.
`passes` says how many rows go at once, `halving` how many fewer where memory is short, `pieces` reads the output head
a few positions at a time, and `shapes` keeps the shapes of matrices few. `computing`, `precision` and `products` say
in which arithmetic, `attention` how heads read, `devices` and `modes` where a model takes its input and how it is
left. `generation` gives greedy answers, `cache` keeps them on disk, by the `identity` of a base, and `likelihoods`
says how likely given answers are. `replicas`, `workers` and `at_once` share the work among threads, `sharing` among
processes, which `alike` finds given the same; `overlapping` is for what threads have in common, and `freed` gives
memory back between two parts.
"""
