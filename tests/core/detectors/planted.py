"""PII and secrets of every kind, drawn anew: none is a real one, and none stands in this repository."""

import string

from hypothesis import strategies as st
from stdnum import luhn
from stdnum.iso7064 import mod_97_10

UPPER, LOWER, DIGITS = string.ascii_uppercase, string.ascii_lowercase, string.digits
WORD = UPPER + LOWER + DIGITS
URL_SAFE = WORD + "-_"


def chars(alphabet: str, least: int, most: int | None = None) -> st.SearchStrategy[str]:
    return st.text(alphabet, min_size=least, max_size=least if most is None else most)


def after(prefixes: str | list[str], tail: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    begin = st.sampled_from([prefixes] if isinstance(prefixes, str) else prefixes)
    return st.tuples(begin, tail).map("".join)


def drawn(n: int = 14) -> st.SearchStrategy[str]:
    """What a password generator makes: no character twice, letters and digits."""
    return st.permutations(WORD).map(lambda order: "x7" + "".join(order)[:n])


def _iban(account: str) -> str:
    body = "37040044" + account
    return "DE" + mod_97_10.calc_check_digits(body + "DE") + body


def _spaced(text: str) -> str:
    return " ".join(text[i : i + 4] for i in range(0, len(text), 4))


def _card(body: str) -> str:
    return body + luhn.calc_check_digit(body)


def _either_spaced(text: str) -> st.SearchStrategy[str]:
    return st.sampled_from([text, _spaced(text)])


SECRETS = {
    "aws_access_key": after(["AKIA", "ASIA"], chars(UPPER + DIGITS, 16)),
    "github_token": after(["ghp_", "gho_", "ghs_"], chars(WORD, 36)) | after("github_pat_", chars(WORD + "_", 22, 82)),
    "gitlab_token": after(["glpat-", "gldt-"], chars(URL_SAFE, 20, 40)),
    "slack_token": after(["xoxb-", "xoxp-", "xapp-1-"], chars(WORD + "-", 10, 72)),
    "slack_webhook": after("hooks.slack.com/services/T", chars(WORD + "/", 24, 44)),
    "model_api_key": after(["sk-", "sk-proj-", "sk-ant-api03-"], chars(URL_SAFE, 20, 110).map(lambda t: "7" + t)),
    "google_api_key": after("AIza", chars(URL_SAFE, 35)),
    "google_oauth": after("GOCSPX-", chars(URL_SAFE, 28)) | after("ya29.", chars(URL_SAFE, 20, 120)),
    "stripe_key": after(["sk_live_", "rk_test_"], chars(WORD, 24, 99)),
    "webhook_secret": after("whsec_", chars(WORD + "+/", 32, 44)),
    "dunnock_key": after("dk-", chars(URL_SAFE, 43)),
    "hugging_face_token": after("hf_", chars(WORD, 34)),
    "npm_token": after("npm_", chars(WORD, 36)),
    "pypi_token": after("pypi-AgE", chars(URL_SAFE, 60, 180)),
    "url_password": st.tuples(chars(LOWER, 1, 12), drawn()).map(lambda t: f"://{t[0]}:{t[1]}@db.example/x"),
    "jwt": st.tuples(*[chars(URL_SAFE, 10, 700)] * 2).map(lambda t: f"eyJ{t[0][:400]}.eyJ{t[1]}.{t[0]}"),
    "private_key": st.sampled_from(["", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "]).map(
        lambda kind: f"-----BEGIN {kind}PRIVATE KEY-----\nMIIE"
    ),
    "bearer_token": after(["Bearer ", "bearer  "], drawn(24)),
    "password": after(
        ["password = ", "PASSWORD=", "api_key: '", "password is ", "secret_value => ", "passwort ist "], drawn()
    ),
}

PII = {
    "email": st.tuples(chars(WORD, 1, 64), chars(LOWER, 1, 40), st.sampled_from(["org", "co.uk", "example"])).map(
        lambda t: f"{t[0]}@{t[1]}.{t[2]}"
    ),
    "iban": chars(DIGITS, 10).map(_iban).flatmap(_either_spaced),
    "card": after(["4", "51", "2221"], chars(DIGITS, 14)).map(lambda t: _card(t[:15])).flatmap(_either_spaced),
    "ssn": st.tuples(st.integers(1, 665), st.integers(1, 99), st.integers(1, 9999)).map(
        lambda t: f"{t[0]:03}-{t[1]:02}-{t[2]:04}"
    ),
    "ip": st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(lambda ip: ip.exploded),
    "phone": st.sampled_from(
        ["+49 170 1234567", "(020) 7946 0958", "+1 (212) 555-0123", "212-555-0123", "+491701234567"]
    ),
}

LURES = [
    "password: ", "the token is ", "eyJ", "eyJabcdefgh.ey", "-----BEGIN ", "-----", "sk-", "gh", "AKIA", "+49 ", "12 34 56 ", "a@b",
    "DE44 5001", "Bearer ", "http://a:b", "4111 1111 ", "::1", "123-45", "(020", "x" * 300, "e\u0301", "👩‍👩‍👧", "🇩🇪", "日本語のテキスト", "\r\n", "\u200b",
]  # fmt: skip
"""What looks like the beginning of something, and signs that must not be torn."""


def prose(most: int = 5) -> st.SearchStrategy[str]:
    """Arbitrary text with lures in it."""
    bit = (
        st.sampled_from(LURES) | st.text(max_size=12) | st.sampled_from([" ", ", ", ".\n", "word", "The ", "in 1999 "])
    )
    return st.lists(bit, max_size=most).map("".join)


def split(text: str, cuts: list[int]) -> list[str]:
    """The text cut at these places (any numbers do), empty pieces too."""
    places = sorted(cut % (len(text) + 1) for cut in cuts)
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
