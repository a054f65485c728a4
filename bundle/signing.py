"""Ed25519 keys of bundles: a pair is made once at home, the private half signs there, the public one goes to the devices.

Both are PEM files. A signature is told with the key that made it, so that "another key" and "other bytes" can be told apart.
"""

import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from core.errors import ArtifactError, BundleRefused, Conflict

SIGNED_BYTES = 32 + 64
"""sha256 of the public key, and the signature."""


def make_keys(private: Path, public: Path) -> str:
    """Write a new pair of keys, the private one readable by its owner alone; returns the pair's fingerprint.

    Raises:
        Conflict: a file is there already; a key that devices know is not written over.
    """
    if found := [path for path in (private, public) if path.exists()]:
        raise Conflict(f"{found[0]} is there already; take another name, or remove it if no device knows its key")
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for path, data, mode in (
        (private, secret, 0o600),
        (public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), 0o644),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
    return fingerprint(key.public_key())


def private_key(path: Path) -> Ed25519PrivateKey:
    """The key that signs.

    Raises:
        ArtifactError: the file holds none.
    """
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ArtifactError(
            f"{path} holds no private key for bundles ({error}); make a pair with `flask --app app bundle-key`, or set"
            " DUNNOCK_BUNDLE__PRIVATE_KEY"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ArtifactError(f"{path} holds a key of another kind; bundles are signed with Ed25519")
    return key


def public_key(path: Path) -> Ed25519PublicKey:
    """The key that a bundle has to be signed with.

    Raises:
        ArtifactError: the file holds none.
    """
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ArtifactError(f"{path} holds no public key: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ArtifactError(f"{path} holds a key of another kind; bundles are signed with Ed25519")
    return key


def fingerprint(key: Ed25519PublicKey) -> str:
    """What a key is known by: sha256 (hex) of its 32 bytes."""
    return _digest(key).hex()


def sign(key: Ed25519PrivateKey, data: bytes) -> bytes:
    """`SIGNED_BYTES` that say who signed what."""
    return _digest(key.public_key()) + key.sign(data)


def verify(key: Ed25519PublicKey, signed: bytes, data: bytes) -> None:
    """Raise BundleRefused unless `signed` is this key's word on `data`."""
    told, signature = signed[:32], signed[32:]
    if told != _digest(key):
        raise BundleRefused(
            f"it is signed with the key {told.hex()[:16]}…, and the key that was given is {fingerprint(key)[:16]}…; give the"
            " public key of whoever made it"
        )
    try:
        key.verify(signature, data)
    except InvalidSignature as error:
        raise BundleRefused("its signature does not fit its manifest: one of them was changed") from error


def _digest(key: Ed25519PublicKey) -> bytes:
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).digest()
