"""Names and values that only the token of their session opens, without I/O.

The keys come out of the token by HKDF-SHA-256 (RFC 5869), and no server keeps the token. A name is
stored as its HMAC-SHA-256. A value is sealed by AES-256-GCM (NIST SP 800-38D) under a random nonce,
together with its name, and bound to the stored name: a moved value does not open.
"""

from __future__ import annotations

import hmac
import os
import struct
from binascii import b2a_base64
from collections.abc import Mapping
from typing import Any

import bson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from . import document
from .document import Token

_PURPOSE = b"mongosession_wsgi: names and values of a sealed session, v 2"
_NONCE = 12
_NAME = 16
"""The bytes of a stored name: no two of a session's names meet in them."""


class Seal:
    """Seal and open the names and values of one session."""

    __slots__ = ("_cipher", "_name_key")

    def __init__(self, token: Token) -> None:
        keys = HKDF(algorithm=SHA256(), length=64, salt=None, info=_PURPOSE).derive(token.encode())
        self._cipher, self._name_key = AESGCM(keys[:32]), keys[32:]

    def name(self, key: str) -> str:
        """Return the name under which the value of `key` is stored."""
        digest = hmac.digest(self._name_key, key.encode(errors="surrogatepass"), "sha256")[:_NAME]
        return b2a_base64(digest).translate(document.TO_URLSAFE, b"=\n").decode()

    def fields(self, values: Mapping[str, Any], prefix: str = "") -> dict[str, bytes]:
        """Seal values in stored form; return the sealed values by their stored names."""
        encrypt, sealed = self._cipher.encrypt, dict[str, bytes]()
        for key, stored in values.items():
            name, nonce = self.name(key), os.urandom(_NONCE)
            plain = bson.encode({document.escape(key): stored}, codec_options=document.CODEC)
            sealed[prefix + name] = nonce + encrypt(nonce, plain, name.encode())
        return sealed

    def open(self, sealed: dict[str, bytes]) -> dict[str, Any] | None:
        """Open values by their stored names, all at once; return them by their keys.

        Those inside of lists and dicts are in stored form; see `document.opened`.

        Return None if the session has not sealed a value under its name.
        """
        decrypt = self._cipher.decrypt
        try:
            plain = [
                decrypt(value[:_NONCE], value[_NONCE:], name.encode())
                for name, value in sealed.items()
            ]
        except (InvalidTag, ValueError):
            return None
        whole = plain[0] if len(plain) == 1 else _together(plain)
        return document.by_key(bson.decode(whole, codec_options=document.CODEC))


def _together(documents: list[bytes]) -> bytes:
    """Return one document with the elements of all, to be decoded by one call."""
    elements = b"".join([one[4:-1] for one in documents])
    return struct.pack("<i", len(elements) + 5) + elements + b"\0"
