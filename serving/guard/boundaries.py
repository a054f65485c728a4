"""Where a text may be cut so that no sign is torn: not within a grapheme cluster, not between the halves of a surrogate pair.

Clusters as in Unicode Standard Annex 29, by the `regex` package.
"""

import regex

LONGEST_CLUSTER = 64
"""Characters. A longer cluster (marks piled on one letter) may be torn, else it would hold back the rest of a reply."""

_CLUSTER = regex.compile(r"[\ud800-\udbff][\udc00-\udfff]|\X")


def torn_nowhere(text: str, upto: int, *, more: bool) -> int:
    """The last place, no later than `upto`, at which `text` may be cut; it begins at such a place itself.

    Args:
        more: text may follow. Then its end is no such place yet: a mark for the last letter may be the next thing to come.
    """
    if text.isascii() and "\r" not in text:
        # Only a mark that is still to come could tie to the last letter.
        return upto - 1 if more and upto == len(text) and upto else upto
    at = 0
    for cluster in _CLUSTER.finditer(text):
        end = cluster.end()
        if end > upto or (more and end == len(text)):
            return upto if upto - at > LONGEST_CLUSTER else at
        at = end
    return at
