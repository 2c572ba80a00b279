"""Files that are never half written (`files`), in folders that one run at a time writes to (`claims`, `locks`) and
that hold nothing which is read for them (`inputs`). `carried` is what goes beside weights unchanged.
"""
