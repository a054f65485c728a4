"""What somebody may be called: which logins are free, which are the same, and which names processes and scripts keep.

In: a login as it was typed. Out: the login that is stored, and its key, by which it is unique. The audit log names who
acted by login, or by one of `PROCESSES`; so nobody gets one of these, nor a name that reads like somebody else's.

Not covered: look-alikes within one script (rn and m, 0 and O). Scripts are told apart by the names of characters, as
Python's Unicode database has no scripts (UAX #24); a login is of one script, after UTS #39's "single script" level.
"""

import re
import unicodedata

from core.errors import InvalidInput
from core.language import gettext

WORKER, GOLD_CHECK, COMMAND_LINE, OPENID = "worker", "gold check", "command line", "openid provider"
SESSION_CHECK = "session check"
PROCESSES = frozenset(
    {WORKER, GOLD_CHECK, COMMAND_LINE, OPENID, SESSION_CHECK, "system", "cycle", "scheduler", "engine", "web"}
)
"""Who acts where nobody does. "system" and "cycle" are what `policy` calls them, which knows no people."""
IMPORTED = ("ext:", "ext-script:")
"""Beginnings of the logins of people who judged elsewhere. They tell capitals apart, as the files that they come from do."""
TENANT = "tenant:"
"""Beginning of the logins of the accounts that tenants' keys act as (`access.tenants`)."""
SCRIPTS = ("script-", "scripted-")
"""Beginnings of the logins of programs that judge, and of no person."""
SCRIPT_NAMES = frozenset({"demo"})

MAX_LOGIN = 120
MAX_KEY = 255  # folding makes some letters two or three
UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0")
"""Letters and marks without a shape; variation selectors come on top, by their name."""
ONE_SCRIPT = dict.fromkeys(("CJK", "HIRAGANA", "KATAKANA", "HALFWIDTH", "IDEOGRAPHIC"), "JAPANESE")
ALIKE = str.maketrans({"ı": "i", "ɑ": "a", "ɡ": "g", "ɩ": "i"})
"""Latin letters that read as another one in common type."""


def checked_login(login: str, *, scripted: bool = False) -> str:
    """The login as it is stored (NFKC, no blanks around, one between words).

    Args:
        scripted: it is for a program, which may have a name of `SCRIPTS`.

    Raises:
        InvalidInput: it is empty, too long, hard to read or easily mistaken, or kept for a process or an import.
    """
    login = re.sub(" +", " ", unicodedata.normalize("NFKC", login)).strip()
    if not 1 <= len(login) <= MAX_LOGIN or not login.isprintable() or len(folded(login)) > MAX_KEY:
        raise InvalidInput(gettext("a login has 1 to 120 printable characters"), param="login")
    if len(scripts := _scripts(login)) > 1 or "" in scripts:
        raise InvalidInput(
            gettext(
                "a login has letters of one script, digits, and plain signs such as . - _ @; %(login)r could be taken for another one",
                login=login,
            ),
            param="login",
        )
    key = folded(login)
    of_scripts = key.startswith(SCRIPTS) or key in SCRIPT_NAMES
    if key in PROCESSES or key.startswith((*IMPORTED, TENANT)) or (of_scripts and not scripted):
        raise InvalidInput(
            gettext("the login %(login)r is kept for programs and imports; choose another one", login=login),
            param="login",
        )
    return login


def folded(login: str) -> str:
    """What is the same for all spellings of a login: capitals, width, blanks and some look-alikes do not count."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", login).casefold())
    return " ".join(plain.split()).translate(ALIKE)


def key_of(login: str) -> str | None:
    """The key by which a login is unique; none where it would be too long, which `checked_login` refuses."""
    key = login if login.startswith(IMPORTED) else folded(login)
    return key if len(key) <= MAX_KEY else None


def _scripts(login: str) -> set[str]:
    """The scripts of a login's letters, marks and digits; "" stands for what has none and is no plain sign."""
    found = set()
    for char in login:
        if char.isascii():
            if char.isalpha():
                found.add("LATIN")
            continue
        name, kind = unicodedata.name(char, ""), unicodedata.category(char)
        script = name.replace("-", " ").partition(" ")[0]
        if kind[0] not in "LMN" or char in UNSEEN or script == "VARIATION":
            found.add("")
        elif script != "COMBINING":  # marks go with any letter
            found.add(ONE_SCRIPT.get(script, script))
    return found
