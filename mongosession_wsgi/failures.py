"""The driver's errors: their remedies, and the errors that may pass."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb
from typing import NamedTuple

from bson.errors import InvalidBSON
from pymongo.errors import (
    ConnectionFailure,
    OperationFailure,
    ProtocolError,
    PyMongoError,
    WaitQueueTimeoutError,
)

from .errors import StoreError

NOT_ALLOWED = 13
"""The code of an error: the user may not do that."""
LOGIN_REFUSED = 18
"""The code of an error: the user is unknown, or has another password."""
BROKEN = frozenset((6, 7, 89, 91, 134, 189, 262, 9001, 10107, 11600, 11602, 13435, 13436))
"""The errors after which MongoDB's drivers repeat a read, by their specification."""
BUSY = frozenset((24, 46, 50, 64, 112, 117, 276, 12586, 12587, 16500))
"""More errors that pass by themselves: locks, conflicts, timeouts, too many requests."""
DAMAGED = (InvalidBSON, struct.error, zlib.error)
"""The errors of the driver for an answer that it cannot read."""
RAISED_BY_THE_DRIVER = (
    *DAMAGED,
    *(PyMongoError, OSError, ValueError, TypeError, LookupError, RuntimeError, MemoryError),
    *(ImportError, Warning),
)
"""The driver's errors, and others that come out of the driver while it connects.

Warnings are errors too where Python was told so (`python -W error`).
"""
_CONNECTS = {"connect", "authenticate", "open", "_get_topology", "_resolve_srv"}
"""The names of the driver's functions that connect."""


class LookUpTimeoutError(PyMongoError):
    """The look-up of a server's name was not over in time.

    Not a `ConnectionFailure`, for which the driver gives up the connections that it has.
    """

    @property
    def timeout(self) -> bool:
        """True, as for all errors of the driver that mean a timeout."""
        return True


class Remedy(NamedTuple):
    """A cause of errors, told by type, code or words, and a sentence for the operator."""

    sentence: str
    words: str | None = None
    codes: tuple[int, ...] = ()
    types: tuple[type[BaseException], ...] = ()

    def fits(self, error: BaseException, code: int | None, words: str) -> bool:
        """Say whether an error has the cause."""
        return (
            isinstance(error, self.types)
            or code in self.codes
            or (self.words is not None and re.search(self.words, words, re.IGNORECASE) is not None)
        )


REMEDIES = (
    Remedy(
        "An answer of MongoDB is damaged; look at the server's log, and at what is between: a "
        "proxy, a network",
        types=DAMAGED,
    ),
    # The driver's words for these two quote the failures of single members.
    Remedy(
        "No member of the replica set answers by its name in the set; if they run, let this "
        "machine look these names up, or, for a set of one, set mongodb_direct_connection: true",
        r"^\w+: Could not reach any servers (?!.*(SSL|certificate)).* internal hostnames",
    ),
    Remedy(
        "The replica set has no primary that this machine can reach; if no election is under way, "
        "look whether it was initiated (rs.initiate()), which members are down, and whether each "
        "can be reached by its name in the set",
        r"^\w+: No (primary available|(replica set members|servers) (match|available for writes))",
    ),
    Remedy(
        "This process can have no more threads; raise the limit (ulimit -u, or pids.max of the "
        "container), or run fewer workers",
        "can't (start|create) new thread",
    ),
    Remedy("This process can have no more memory", types=(MemoryError,)),
    Remedy(
        "This process, or this machine, can have no more open files; raise the limit (ulimit -n), "
        "and look what keeps so many open",
        "Too many open files",
    ),
    Remedy(
        "The user name or the password has a character that no login may have, as a password that "
        "ends in a newline; check mongodb_username and mongodb_password, and the file they are in",
        "SASLprep",
    ),
    Remedy(
        "A mongodb+srv:// URI needs the package dnspython; install it: pip install dnspython",
        '"dnspython" module',
    ),
    Remedy(
        "The kind of login that is set (authMechanism) needs another package; install it",
        '"kerberos" module|requires pymongo-auth-aws|must be installed',
    ),
    Remedy(
        "This machine has no token for the kind of login that is set (authMechanism); check "
        "mongodb_auth_mechanism_properties, and that the application runs where tokens are handed "
        "out",
        "access token|serviceaccount/token|token file|MONGODB-OIDC requires",
    ),
    Remedy(
        "The name of the server was not looked up in time; check mongodb_host, and that the name "
        "servers (DNS) of this machine answer",
        "resolution lifetime expired",
        types=(LookUpTimeoutError,),
    ),
    Remedy(
        "The name of a server cannot be looked up; check mongodb_host for a slip, the name servers "
        "(DNS) of this machine, and whether a replica set has names for its members that only they "
        "know",
        r"Name or service not known|name resolution|nodename nor servname|No address associated"
        r"|getaddrinfo failed|'idna' codec|DNS (query|response|operation)|All nameservers",
    ),
    Remedy(
        "The DNS records of the name in the mongodb+srv:// URI are not as MongoDB wants them; ask "
        "whoever keeps them",
        "TXT record|supported from DNS|Invalid SRV host|'utf-8' codec",
    ),
    Remedy(
        "MongoDB Atlas closes the connection; add the IP address of this machine to the IP access "
        "list of the Atlas project, and look whether the cluster is paused",
        r"\.mongodb\.net.*(alert internal error|EOF occurred|connection closed|reset by peer)"
        r"|(alert internal error|EOF occurred|connection closed|reset by peer).*\.mongodb\.net",
    ),
    Remedy(
        "The certificate of the server is for another name; let mongodb_host name the server as "
        "its certificate does",
        "Hostname mismatch|IP address mismatch|hostname '.*' doesn't match",
    ),
    Remedy(
        "The certificate of the server is not trusted, or its time is up; name the file of the "
        "authority that has signed it in mongodb_tls_ca_file",
        "CERTIFICATE_VERIFY_FAILED",
    ),
    Remedy(
        "The server wants a certificate of this client, or refuses the one it has; check "
        "mongodb_tls_certificate_key_file",
        "alert (bad |unsupported |unknown )?certificate|certificate required|alert unknown ca",
    ),
    Remedy(
        "The server hangs up while TLS is agreed on: most likely it has no TLS, so remove "
        "mongodb_tls (or tls=true), or let the server have it; else it refuses this client",
        r"WRONG_VERSION_NUMBER|record layer failure|SSL handshake failed.*(EOF|closed|reset)",
    ),
    Remedy(
        "TLS with the server fails; check the mongodb_tls_* settings, whether the server wants a "
        "certificate of this client, and the versions of TLS that both sides have",
        r"SSL handshake failed|\[SSL: \w*ALERT|UNSUPPORTED_PROTOCOL",
    ),
    Remedy(
        "A file of certificates is not there, not readable or damaged; check mongodb_tls_ca_file, "
        "mongodb_tls_certificate_key_file (and its password) and mongodb_tls_crl_file",
        "file is not readable|NO_CERTIFICATE_OR_CRL_FOUND|Private key doesn't match|PEM lib",
        types=(OSError,),
    ),
    Remedy(
        "No replica set of that name is there; check mongodb_replica_set (or replicaSet=), and "
        "leave it out where the server is in none",
        "replica set name",
    ),
    Remedy(
        "MongoDB refused the login; check mongodb_username, mongodb_password and mongodb_db_name, "
        "the database that knows them",
        # After the first refusal, the driver has the code in its text only.
        f"uthentication failed|bad auth|'code': {LOGIN_REFUSED},",
        (LOGIN_REFUSED,),
    ),
    Remedy(
        "MongoDB wants a login, and the settings have none; set mongodb_username and "
        "mongodb_password, and the database that knows them as mongodb_db_name",
        "requires authentication|authentication (is )?required|not logged in|login required",
    ),
    Remedy(
        "MongoDB does not allow this user to do that; grant it readWrite on the database",
        "not allowed to do action",  # Of MongoDB Atlas, with a code for many things.
        (NOT_ALLOWED,),
    ),
    Remedy(
        "A unique index that is not ours refuses this session; drop it, or give sessions a "
        "collection of their own (mongodb_session_coll)",
        codes=(11000,),
    ),
    Remedy(
        "A rule of the collection for its documents (a validator), which is not ours, refuses this "
        "session; remove it, or give sessions a collection of their own (mongodb_session_coll)",
        codes=(121,),
    ),
    Remedy(
        "The collection is a view, which takes no writes; name another as mongodb_session_coll",
        codes=(166,),
    ),
    Remedy("The disk of MongoDB is full; make room there", codes=(14031,)),
    Remedy(
        "Too few members of the replica set have acknowledged a write; look which of them are down "
        "or far behind",
        codes=(64, 100),
    ),
    Remedy(
        "MongoDB takes no more requests at the moment (it throttles); let it have more throughput "
        "(request units), or ask for less",
        "request rate is (too )?large|TooManyRequests",
        (16500,),
    ),
    Remedy(
        "The plan of this MongoDB does not allow that, or its space is used up; the server's words "
        "say which; make room, or take a larger plan",
        "space quota|over your .*quota",
        (8000,),
    ),
    Remedy(
        "The server is not the primary of its replica set; if no election is under way, name all "
        "members in mongodb_host, without directConnection",
        "not primary|not master|NotPrimary|NotWritablePrimary",
        (10107, 13435, 13436),
    ),
    Remedy(
        "This server cannot tell a repeated write from a new one; set mongodb_retry_writes: false",
        "retryable writes|Transaction numbers are only allowed",
        (301,),
    ),
    Remedy("MongoDB and PyMongo are too far apart in age; update the older one", "wire version"),
    Remedy(
        "What answers is no MongoDB; check mongodb_host and mongodb_port",
        "Got response id|opcode|message length",
        types=(ProtocolError,),
    ),
    Remedy(
        "MongoDB did not answer in time, for nothing listens there; start it, or check "
        "mongodb_host, mongodb_port and the firewall",
        r"Connection refused|No route to host|is unreachable|unreachable (host|network)"
        "|No such file or directory|WinError 10061",
    ),
    Remedy(
        "MongoDB closes the connection; if it takes TLS only, set mongodb_tls: true; else look at "
        "its log, and at what is between: a proxy, a firewall, a limit of connections",
        "connection closed|reset by peer|Broken pipe|EOF occurred",
    ),
    Remedy(
        "All connections of this process were in use, or a new one took too long; look whether "
        "MongoDB or DNS is slow, and raise mongodb_max_pool_size above the threads of a worker",
        types=(WaitQueueTimeoutError,),
    ),
)
"""The causes that can be told apart; the first to fit an error counts."""
_SILENT = (
    "MongoDB did not answer in time; check that it runs, that mongodb_host is right and that its "
    "name resolves, that no firewall is between, and that mongodb_tls is as the server wants it"
)


@contextmanager
def explaining() -> Iterator[None]:
    """Turn the driver's errors into ours."""
    try:
        yield
    except RAISED_BY_THE_DRIVER as error:
        raise failure_of(error) from error


def failure_of(error: Exception) -> StoreError:
    """Return our error for an error of the driver; raise any other error again."""
    if isinstance(error, (PyMongoError, *DAMAGED)) or _is_of_connecting(error):
        return StoreError(explained(error))
    raise error


def explained(error: BaseException) -> str:
    """Say what an operator can do about an error; the driver's words follow as the cause."""
    return remedy_of(error) or f"MongoDB failed ({type(error).__name__})"


def remedy_of(error: BaseException) -> str | None:
    """Return the remedy for an error, or None if its cause is unknown."""
    code = error.code if isinstance(error, OperationFailure) else None
    words = f"{type(error).__name__}: {error}"
    # The driver cancels what waits for a server that its monitor has lost.
    is_silent = getattr(error, "timeout", False) or "operation cancelled" in words
    unknown = _SILENT if is_silent else None
    return next((one.sentence for one in REMEDIES if one.fits(error, code, words)), unknown)


def may_be_repeated(error: BaseException | None) -> bool:
    """Say whether a repetition of the failed command has a chance."""
    if isinstance(error, ConnectionFailure):
        return not error.timeout
    if not isinstance(error, OperationFailure):
        return False
    return error.code in BROKEN or error.has_error_label("RetryableWriteError")


def may_pass(error: BaseException | None) -> bool:
    """Say whether a failure may be over some seconds or minutes later."""
    if not isinstance(error, OperationFailure):
        return True
    return error.timeout or error.code in BROKEN | BUSY | {LOGIN_REFUSED}


def _is_of_connecting(error: BaseException) -> bool:
    """Say whether the driver was connecting when the error was raised, by the traceback.

    Else the error is a mistake in the command.
    """
    return any(
        frame.f_code.co_name in _CONNECTS and str(frame.f_globals["__name__"]).startswith("pymongo")
        for frame, _ in walk_tb(error.__traceback__)
    )
