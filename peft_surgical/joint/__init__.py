"""Several facts in one model.

`fact_set` says which may stand together and what the folder of each is called, `resuming` which of them are edited
already, as the same edit would be made again, and `counting` which of their prompts count once all edits act.
"""
