"""Webhooks: other programs are told what happened, signed, until they take it.

`events` writes what happened into an outbox, in the transaction in which it happens; `sending` is the worker's thread that
empties it; `guarded` is the way out, which leads to no private address; `subscriptions` and `views` are for leads.
"""
