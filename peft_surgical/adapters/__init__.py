"""An edit apart from any model: coordinates and the scales on them.

`edits` is the value, `algebra` multiplies, inverts and subtracts such values, `halves` rounds them to what half
precision holds. `adapter_files` and `scale_files` read and write folders, `saving` writes one adapter of a model
into one, `export` goes to and from PEFT's own (IA)^3, `low_rank` reads and writes LoRA adapters as matrices to
add, and `mergeable` reads an adapter of either kind. `bases` tells base models apart, `lineage` what an adapter was
trained on top of, `fitting` whether all of one acts on a model; `cards` describes one to a reader, and `merged_edits`
those that are in a checkpoint's weights.
"""
