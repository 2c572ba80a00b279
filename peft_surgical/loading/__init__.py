"""Where weights come from: the demo model's out of a package (`demo`), and none out of a pickle (`pickles`).
`damage` says which file of a checkpoint cannot be read, `stored` maps the tensors of one, and `gguf_header` reads what
a GGUF file says of itself.

`padding` lends a tokenizer that has none a token to pad with.
"""
