"""How fast reward models, DPO and PPO train here, beside TRL's stock trainers, on the same work.

`__main__` lays out what is measured; each measurement is a process of its own (`child`), by `ours` or by `stock`; `data` picks
the pairs, the same for both, `limit` tells what the machine can multiply, and `figures` keeps what was found.
"""
