"""What an evaluation measures.

`metrics` has figures, intervals and the rules by which an answer counts, `ratio` the ratio of two rates.
`retention`, `fluency`, `portability`, `margins` and `soft_forgetting` measure one thing each. `states` are the base
and the edits that are compared, `attached` those of adapters that are read from disk, `checkpoints` that of an edited
checkpoint, if it is `comparable` with the base; `relearning` and `rounding` make more of them, which `afterwards`
arranges and `rewriting` puts back.
"""
