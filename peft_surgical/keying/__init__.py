"""Facts written under their subject's own keys.

Neurons are rewritten to fire at the subject, which `neurons` finds: `keyed` trains a fact file's prompts by four of
them, `keyed_by_subject` one sentence by two, among texts of `naming`. `keys` reads what enters modules, `updates` puts
what changes on a model as LoRA, and `keyed_stage` says what it does.
"""
