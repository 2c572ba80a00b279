"""From one question to a whole fact file: other wordings, other subjects, controls and probes.

`tidying` puts a prompt right, `english` says whether it is in English, and `reading` takes it apart (`recognition`,
`relations`). `ways` puts it differently (`frames`, `plurals`, and `clauses` for questions that no table knows),
`paraphrases` chooses among the ways. `drafts` makes the fact around it (`guess` with `capitals` and
`lowercase`, `heard`, `choosing`, `others`, `countries`, `probing`, `sentences`, from what `names` and `known_facts`
hold) and `fact_text` writes it for a person to read.
"""
