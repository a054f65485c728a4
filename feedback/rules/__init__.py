"""Rules: their versions, pages, counts. What others need is in `store`."""
