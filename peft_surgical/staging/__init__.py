"""What trains a stage.

`stage` is what a stage is, with its adapter and what it saves. `training` is the loop, which follows a `recipe` over
`trained_rows`, with `whole_answers` for models that answer in sentences; `training_here` trains the adapter, and
nothing else, in whatever mode its caller is. `recipe_files` writes recipes down and reads them. `retain` says what is
kept, with the other subjects of `contrast`, `measured` what a pass over it gives, `retained` holds that for both
stages, with its `origins`, and `curvature` makes steps of it by `solving` for them. `placeable` says which models can
get an adapter. `by_subject` learns one sentence instead: with scales that act on some tokens only (`acting`) and a
metric in closed form (`displacement`), and reads `subject_texts`.
"""
