"""The study: what structures and permutations cost in accuracy, trained by the code users call.

`python -m benchmarks.study configs/default.json` trains every run of a grid that has no row in the
result file yet; `--report` makes tables and pictures from the file alone.
"""
