"""Tasks and judgments that come in and go out: our own JSONL, Hugging Face datasets, Label Studio, Argilla.

Each form of another program has a module that turns its rows into `rows.TaskRow` and back as far as it can say the same;
`loading` writes them, `reading` finds out what a file holds, `writing` puts out what is stored.
"""
