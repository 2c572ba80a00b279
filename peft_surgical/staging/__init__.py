"""What trains a stage.

`training` is the loop. `retain` says what is kept, `measured` what a pass over it gives, `retained` holds that for
both stages, and `curvature` makes steps of it. `by_subject` learns one sentence instead: with scales that act on
some tokens only (`acting`) and a metric in closed form (`displacement`).
"""
