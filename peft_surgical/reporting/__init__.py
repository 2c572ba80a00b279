"""A report to read: as a page (`page`, `page_answers`), and in a terminal (`summary`)."""
