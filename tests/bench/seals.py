"""What a seal takes by itself, without a request around it: the best of many turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from timeit import repeat

import bson

from mongosession_wsgi.document import CODEC, new_token

from .contenders import LARGE, SMALL, data_of

TURNS, AT_A_TIME = 60, 100


def alone() -> dict[str, float]:
    """Return microseconds of CPU, by what is done; nothing without the package cryptography."""
    try:
        from mongosession_wsgi.seal import Seal
    except ImportError:
        return {}
    token = new_token(sealed=True)
    seal, name = Seal(token), "key000"
    small, large = data_of(SMALL), data_of(LARGE)
    sealed_small, sealed_large = seal.fields(small), seal.fields(large)
    plain_small, plain_large = (bson.encode(of, codec_options=CODEC) for of in (small, large))

    def open_one() -> None:
        stored = seal.name(name)
        seal.open({stored: sealed_large[stored]})

    return {
        "derive the keys, once a request": best(lambda: Seal(token)),
        "read one of 50 values": best(open_one),
        "read 3 values": best(lambda: seal.open(sealed_small)),
        "the same, not sealed": best(lambda: bson.decode(plain_small, codec_options=CODEC)),
        "read 50 values": best(lambda: seal.open(sealed_large)),
        "the same 50, not sealed": best(lambda: bson.decode(plain_large, codec_options=CODEC)),
        "set one value": best(lambda: seal.fields({name: large[name]})),
        "set 50 values, as a login does": best(lambda: seal.fields(large)),
    }


def best(act: Callable[[], object]) -> float:
    """Return the microseconds of an act when nothing else was in the way."""
    spent = min(repeat(act, number=AT_A_TIME, repeat=TURNS, timer=time.thread_time))
    return round(spent / AT_A_TIME * 1e6, 1)
