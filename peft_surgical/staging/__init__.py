"""What trains a stage.

`training` is the loop, which follows a `recipe`. `retain` says what is kept, `measured` what a pass over it gives,
`retained` holds that for both stages, and `curvature` makes steps of it. `placeable` says which models can get an
adapter, and `training_here` trains it, and nothing else, in whatever mode its caller is. `by_subject` learns one
sentence instead: with scales that act on some tokens only (`acting`) and a metric in closed form (`displacement`), and
reads `subject_texts`.
"""
