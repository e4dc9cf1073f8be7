"""The promises of section 6 of the contract, by name, and what it is to break one."""

from __future__ import annotations

from typing import NamedTuple

PROMISES = {
    "1 lost": "what was acknowledged is stored, unless the same key was committed later",
    "1 whole": "a request changes the keys that it set, and no others",
    "2 reader": "a request that only read changes nothing",
    "3 revived": "what has ended is not live again",
    "3 after the end": "a request whose session was ended meanwhile stores nothing, sets no cookie",
    "3 by whom": "a session is ended only by those who may",
    "4 old token": "a token from before reads as empty, stores nothing, sets no cookie",
    "4 logout": "a logout ends the session under its new token too, and expires the cookie",
    "4 login": "a login stores a session of its own, and sets its cookie",
    "4 owner": "a login brings along what is its owner's or nobody's, all of it and nothing else",
    "5 winners": "of several requests that regenerate one session, one wins",
    "6 seen": "a request sees what is stored",
    "6 in time": "a response goes out when its changes are stored, not before",
    "6 outside": "the cookie that a browser has opens what it should",
    "7 final": "what was revoked is not live, and nothing that was regenerated from it",
    "7 count": "a revocation says how many it ended",
    "answer": "every request is answered as its application answers, or 503 if a command failed",
    "endless": "no request goes on for ever",
    "cookie": "a response sets the cookie of a live session, or expires that of an ended one",
    "moments": "no moment moves back, and none but a login changes the owner or the creation",
    "limit": "of one owner no more sessions are live than session_limit says",
}


class Broken(NamedTuple):
    """A promise that an order has broken, and how."""

    promise: str
    words: str
