"""What noise and attacks do to a reward model, with the defences of a snapshot and of the ensemble on and off.

Scripted people judge texts whose worth is known; everything after that is the product's own way: tasks and judgments go into a
database by the import, a snapshot is frozen, a reward model is trained, and it ranks clean pairs of prompts it never saw.
"""
