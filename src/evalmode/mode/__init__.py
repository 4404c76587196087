"""The switch into evaluation and the exact way back.

`switch` is the door, `session` one entry through it, `decorated` the way of functions; `discover` finds every module;
`ledger` counts modes per module, `grad_mode` per thread and `streams` random streams per process, whose state
`stream_states` reads and writes; `overrides` and `snapshot` keep modules with a `train()` or `eval()` of their own
exact; `baked` reads modes written into graphs; `backward` makes backward() harmless; `freeze` outlives the switch;
`weights` names the tensors that answers are made of; `derived` knows the predictors that were built from a model.
"""
