"""Facts written under their subject's own keys.

`keyed` trains a fact file's prompts, by neurons that fire at the subject, which `neurons` finds and rewrites;
`keyed_by_subject` trains one sentence, by an update of rank one along a direction that reads the subject off, which
`keys` finds among texts of `naming`. `updates` puts either on a model as LoRA, of which `keyed_stage` says what it
does.
"""
