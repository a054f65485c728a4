"""The guard's core: checks of what users send and of what the policy writes, on whole texts and on streams. No IO here.

In: texts in pieces, and what the checks that need a model said. Out: what may be released, what to ask, when to cut, and
verdicts to keep. `docs/guard.md` tells what each check finds and what it does not.
"""
