"""What localizing a fact is made of.

`asked` checks what a caller asks and sets it up. `corruption` makes prompt pairs, `controls` pairs about other things,
and `window` cuts both to what differs. `bridge` puts TransformerLens's hooks on the model, `found` takes back what a
scorer makes of it, `runs` runs the pairs under them, `patching` and `effects` measure exact effects, `circuits` those
of whole selections, of which `faithfulness` is the record, and `streams` those of what layers read and write at some
`token_classes` of a prompt, of which `traces` has the record. `context` is what a scorer is given, `specs` what a
person asks of it and `scores` what becomes of its result. `results` holds the table, `localization_files` checks it on
disk, `display` and `plots` show it.
"""
