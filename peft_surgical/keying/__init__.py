"""Facts written under their subject's own keys, by updates of rank one.

`keys` finds the directions that read a subject off, `updates` puts them on a model. `keyed` trains a fact file's
prompts so and `keyed_by_subject` one sentence; `keyed_files` saves what they made.
"""
