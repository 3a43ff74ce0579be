"""Goldens of the training suites: one module for each library or objective, with JOBS.

run, recipe, h5  what they share: one training run, what it did, its file
compare          two files of one golden
lm, kl           LM training; training of the indexer
lora, sharded    real peft; real DeepSpeed on two processes
"""
