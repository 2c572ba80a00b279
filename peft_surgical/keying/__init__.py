"""Facts written under their subject's own keys.

Neurons are rewritten to fire at the subject, which `neurons` finds and puts on a model as LoRA, of those that `taking`
says are there to be taken: `keyed` trains a fact file's prompts by four of them, `keyed_by_subject` one sentence by
two, among texts of `naming` and `drawn` and so that the first does not write what the second reads (`apart`).
`other_names` are those of a country. `telling` says what the subject is told from, `keys` reads what enters modules,
`firing` where neurons fire, and `keyed_stage` holds what came of it.
"""
