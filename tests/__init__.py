"""Tests mirror the source folders; `conftest.py` has the fixtures, `factories.py` makes real rows.

Imported before any test: it takes this machine's own settings out of the environment and keeps the hub out.
"""

import os

for _name in [n for n in os.environ if n.startswith("DUNNOCK_") and n != "DUNNOCK_CHROMIUM"]:
    del os.environ[_name]
os.environ["HF_HUB_OFFLINE"] = "1"
