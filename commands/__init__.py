"""Commands that start or drive the whole: set-up, run, demo, and the flask commands. Like `app`, they may import all."""
