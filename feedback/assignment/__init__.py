"""Who judges what next, and what they are shown: leases, known answers, repeats, and how annotators stand."""
