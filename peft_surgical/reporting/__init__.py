"""A report to read: as a page (`page`, `page_answers`), in a terminal (`summary`), and on a model card (`card`).

`weights` says which weights were measured. Of several edits together `joint_card` makes a model card's text, and
`joint_table` a table.
"""
