"""The words of a fact and of its prompts, and the tokens they become.

`fact_files` and `fact_checks` say what a fact may be, `text` how texts compare, `numbers` where a name ends within a
number, `grammar` how a question is turned round. `prompts` is the one place that knows chat templates, `lengths` what
fits. `wording` and `topics` ask more questions, `verbs` finds and bends the verbs of a sentence, `subjects` finds a
subject among tokens and puts others in its place, `called` knows what else they are called. `tables` reads what comes
with the package.
"""
