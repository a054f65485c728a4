"""How soon the next task comes, how soon a judgment is stored, and how many get done: here and in other tools.

One load generator (`load`) drives a target through one small interface; `dunnock`, `label_studio` and `potato` are the
targets, each with the same pairs to judge (`pairs`). `figures` keeps what was measured.
"""
