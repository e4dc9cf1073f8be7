"""The commit of a request: the table `MOVES[state][known]`, and the moves of the table.

A move takes the visit, sends commands, and returns a `Step`; `Visit.take` alone makes the step
count. An empty cell is nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from functools import cache
from secrets import token_urlsafe
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import ref

from bson.errors import InvalidBSON
from bson.raw_bson import RawBSONDocument

from . import audit, document
from .collection import RAW, SessionCollection
from .commands import Documents
from .document import Mark, Record, id_of
from .draft import UNCHANGED, Draft, SealedData
from .errors import StoreError, logger
from .times import Times
from .visit import (
    NOT_LOOKED,
    NOTHING,
    Failure,
    Known,
    Nothing,
    NotLooked,
    Outcome,
    State,
    Step,
    Visit,
)

if TYPE_CHECKING:
    from .seal import Seal

Move: TypeAlias = "Callable[[Life, Visit], Step]"

_MOST_LOOKS = 4
"""The looks of one commit: each but the first follows a change by somebody else."""
_AHEAD = timedelta(seconds=2)
"""The time by which the clocks of machines may differ."""
_WAITS = (0.01, 0.02, 0.04, 0.08, 0.15)
"""The seconds between looks for a login under way in another request."""


class Life:
    """Carry out the commits of visits, and end sessions, in one collection."""

    def __init__(
        self,
        sessions: SessionCollection,
        clock: Callable[[], datetime],
        *,
        limit: int | None,
        seals: bool,
    ) -> None:
        self._sessions = sessions
        self._clock = clock
        self._limit = limit
        self._seals = seals

    def look(self, visit: Visit) -> Known:
        """Look under the token of a visit; an error of the store becomes a `Failure`."""
        id_ = id_of(visit.token)
        try:
            found = self._found(id_)
        except StoreError as error:
            return Failure(error)
        return self._live(found, visit)

    def commit(self, visit: Visit) -> Outcome:
        """Store the changes of a visit, as the table says, and return the outcome.

        Raises `StoreError`, and `SessionDataError` for data beyond MongoDB's types or size.
        """
        begun = monotonic()
        move = MOVES[visit.state].get(type(visit.known))
        outcome = Outcome.KEPT if move is None else visit.take(move(self, visit))
        return outcome if outcome is not Outcome.LOOK else self._look_again(visit, begun)

    def _look_again(self, visit: Visit, begun: float) -> Outcome:
        """Ask the table again, with the state found in place of a live session, until done."""
        with self._sessions.deadline(begun):
            for _ in range(_MOST_LOOKS):
                move = MOVES[visit.state].get(type(visit.known))
                outcome = Outcome.KEPT if move is None else visit.take(move(self, visit))
                if outcome is not Outcome.LOOK:
                    return outcome
        return visit.take(Step(Outcome.ENDED, visit.known))

    def begin(self, visit: Visit) -> None:
        """Store a new session, also an empty one."""
        visit.touch()
        visit.take(self._insert(visit, visit.draft))

    # The moves.

    def write_unseen(self, visit: Visit) -> Step:
        """Write the difference without a look at the session, and move the expiry."""
        begun, changes, now = monotonic(), visit.draft.difference(), self._clock()
        if changes is UNCHANGED and visit.remember is None:
            return Step(Outcome.KEPT, NOT_LOOKED)
        if changes is UNCHANGED:  # The session may be of another kind than its token says.
            return Step(Outcome.LOOK, self.look(visit))
        conditions, expires_at = visit.times.unseen(now, visit.kind)
        moments = {"seen_at": now} | ({"expires_at": expires_at} if expires_at else {})
        version = document.version_of(visit.token)
        selected = document.live_seen(id_of(visit.token), now, version) | conditions
        seal = _seal_of(visit) if version == document.SEALED else None
        change = document.update_of(changes, moments, {}, seal)
        if self._sessions.update(selected, change):
            return Step(Outcome.RENEWED, NOT_LOOKED, changes)
        with self._sessions.deadline(begun):
            return Step(Outcome.LOOK, self.look(visit))

    def write(self, visit: Visit) -> Step:
        """Write the difference, and move the expiry when that is due. There is no upsert."""
        begun, record = monotonic(), visit.known
        changes, now = visit.draft.difference(), self._clock()
        assert type(record) is Record  # noqa: S101
        due = visit.times.is_renewal_due(record, now)
        stays = visit.remember is None or not visit.changes_times
        if changes is UNCHANGED and stays and not due:
            return Step(Outcome.KEPT, record)
        if record.expires_at <= now:  # It died since, unless somebody has used it.
            return self._not_written(visit, begun)
        used = visit.times.used(record._replace(remember=visit.kind), now, visit.until)
        moments = {"seen_at": used.seen_at, "expires_at": used.expires_at}
        terms: dict[str, Any] = {}
        if used.remember is not record.remember:
            terms["remember"] = used.remember
        if visit.until is not None:  # No other moment may move back.
            terms["expires_at"] = moments.pop("expires_at")
        elif used.remember is False:  # Nor may a moment that another request said since.
            del moments["expires_at"]
        seal = _seal_of(visit) if record.version == document.SEALED else None
        change = document.update_of(changes, moments, terms, seal)
        selected = document.live_seen(record.id, now, record.version)
        selected["remember"] = record.remember
        if self._sessions.update(selected, change):
            return Step(Outcome.RENEWED if due or terms else Outcome.KEPT, used, changes)
        return self._not_written(visit, begun)

    def start(self, visit: Visit) -> Step:
        """Store a new session, unless nothing was set."""
        if not visit.begins:
            return Step(Outcome.KEPT, NOTHING, visit.draft.difference())
        return self._insert(visit, visit.draft)

    def regenerate(self, visit: Visit) -> Step:
        """Swap the session for a mark, and store its latest data under a new token.

        Of several requests at once, the first finds the session. With the first command the old
        token is dead, even if the second command fails.
        """
        with self._in_time():
            image = self._swap(visit)
            if image is None:
                return self._not_swapped(visit)
            found = document.read(document.fields_of(image))
            if found is None:  # Not of our form after all: left alone.
                _log_foreign(id_of(visit.token))
                self._put_back(visit, image)
                return self._not_there(visit, NOTHING)
            record = self._live(found, visit)
            if type(record) is not Record:
                return self._not_there(visit, NOTHING)
            try:
                draft = visit.rebased(record)
                draft.complete()
                if type(visit.known) is Nothing:  # A sealed value did not open: left alone.
                    self._put_back(visit, image, record)
                    return Step(Outcome.LOOK, NOTHING)
                return self._insert(visit, draft, record)
            except StoreError:
                raise
            except Exception:  # A value that cannot be stored, or that raises an error of its own.
                self._put_back(visit, image, record)
                raise

    def end(self, visit: Visit) -> Step:
        """Delete the session, and store the keys set since as a new session."""
        id_, tries = id_of(visit.token), 0

        def delete(them: Documents) -> int:
            nonlocal tries
            tries += 1
            # In other engines, an update at the same moment beats a deletion by `delete_one`.
            live = document.live(id_, self._clock(), document.version_of(visit.token))
            return them.delete_many(live).deleted_count

        with self._in_time():
            if not self._sessions.attempt(delete):
                known = self._live(self._found(id_), visit)
                if type(known) is not Nothing or tries == 1:
                    return self._not_there(visit, known)
            self._say_logout(visit, id_)
            return self._after_end(visit)

    def end_successor(self, visit: Visit) -> Step:
        """End the session under its new token, by the token from before.

        Whoever logs out is out. A login by somebody else, or of an anonymous visitor, stays.
        """
        mark = visit.known
        assert type(mark) is Mark  # noqa: S101
        with self._in_time():
            if mark.goes_on and self.end_chain(mark.id, past_logins=True) is not None:
                self._say_logout(visit, mark.id)
                return self._after_end(visit)
            if visit.login is not None:
                return self.log_in_anew(visit)
            return Step(Outcome.ENDED, mark)

    def log_in_anew(self, visit: Visit) -> Step:
        """Log in by a token already replaced by another login or a rotation: a double click.

        The login stores a session of its own. The data of the first login's session come along, if
        the owner is the same. If the first login is still under way, the second waits a moment.
        """
        mark, login = visit.known, visit.login
        assert type(mark) is Mark  # noqa: S101
        if login is None:
            return Step(Outcome.ENDED, mark)
        with self._in_time():
            record, draft = self._successor(mark, visit), visit.draft
            if record is None:
                there = self._live(self._found(mark.id), visit)
                if type(there) is Record:  # The first login's session is put back.
                    return Step(Outcome.LOOK, there)
            if record is None or record.owner != login.owner:
                draft = draft.rebased({}, replaces=True)
            elif record.version == document.PLAIN:  # A sealed one opens by its own token alone.
                draft = draft.rebased(record.data, replaces=draft.replaces)
            return self._insert(visit, draft)

    def fail(self, visit: Visit) -> Step:
        """Raise the error of the failed look, if the request has changes to store."""
        assert type(visit.known) is Failure  # noqa: S101
        if visit.state is State.OPEN and not visit.has_changes:
            return Step(Outcome.KEPT, visit.known)
        raise visit.known.error

    # The parts of the moves.

    def _not_written(self, visit: Visit, begun: float) -> Step:
        """Look why a seen session could not be written: it has ended, or has another kind now."""
        with self._sessions.deadline(begun):
            known = self.look(visit)
        is_over = type(known) is Nothing or type(known) is Mark
        return Step(Outcome.ENDED if is_over else Outcome.LOOK, known)

    def _not_there(self, visit: Visit, known: Known) -> Step:
        """Go on without a live session to change; `known` stands in its place.

        If the request had looked at the session, the session has ended since, and the end is
        final. But a logout and a login follow a session under its new token. If the request had not
        looked, the table says the rest.
        """
        was_seen = type(visit.known) is Record
        follows = visit.state is State.DESTROYED or visit.login is not None
        moved = type(known) is Record or (type(known) is Mark and follows)
        return Step(Outcome.ENDED if was_seen and not moved else Outcome.LOOK, known)

    def _swap(self, visit: Visit) -> bytes | None:
        """Make a mark of the live session, and return the last image, or None without a session."""
        login, now = visit.login, self._clock()
        version = document.version_of(visit.token)
        selected = document.live(id_of(visit.token), now, version)
        owner = visit.known.owner if type(visit.known) is Record else None
        if login is not None and type(visit.known) is not Record:
            # A login of the same owner makes another mark; a look tells the owner first.
            selected["owner"] = selected["owner"] | {"$ne": login.owner}
        marking = document.marking(
            now,
            id_of(visit.new_token),
            goes_on=login is None or login.owner == owner,
            by_login=login is not None,
        )
        found = self._sessions.attempt(
            lambda them: _raw(them).find_one_and_update(selected, marking)
        )
        return None if found is None else bytes(found.raw)

    def _not_swapped(self, visit: Visit) -> Step:
        """Find out why the swap has found no live session."""
        found = self._found(id_of(visit.token))
        if type(found) is not Mark or found.successor != id_of(visit.new_token):
            return self._not_there(visit, self._live(found, visit))
        # The mark is our own: the command ran twice, and the first answer is lost.
        record = visit.known if type(visit.known) is Record else None
        if record is None and visit.login is None:
            raise StoreError(
                "The answer of MongoDB to a regeneration was lost, and with it the session's data; "
                "a replica set, or a look at the session before, would have saved them"
            )
        return self._insert(visit, visit.draft, record)

    def _insert(self, visit: Visit, draft: Draft, predecessor: Record | None = None) -> Step:
        """Store a new session; without a login, the life of the predecessor goes on."""
        record = self._begun(visit, predecessor)
        contents = draft.contents()
        seal = _seal_class()(visit.new_token) if record.version == document.SEALED else None
        stored = RawBSONDocument(document.document_of(record, contents, seal))
        begun = monotonic()
        is_new = self._sessions.insert(stored)
        self._sessions.ensure_indexes_in_passing()
        if not is_new:
            with self._sessions.deadline(begun):
                if not self._is_stored(record):
                    return Step(Outcome.ENDED, NOTHING)
        self._say_new(visit, record)
        if self._limit is not None:
            with self._sessions.deadline(begun):
                if not self._is_within(self._limit, record, visit.times):
                    return Step(Outcome.ENDED, NOTHING)
        return Step(Outcome.CREATED, record, contents, draft)

    def _is_stored(self, record: Record) -> bool:
        """Say whether a session is stored whose insert found its id taken.

        So it is if an answer was lost. If not, somebody has ended the session before the insert.
        """
        found = self._found(record.id)
        if found is None:
            raise StoreError(
                "MongoDB refused a session as a duplicate, though its id is new; look for a "
                "unique index on the collection that is not ours, and drop it"
            )
        return type(found) is Record

    def _begun(self, visit: Visit, predecessor: Record | None) -> Record:
        """Return the record of a new session, before the insert."""
        now, token, login, times = self._clock(), visit.new_token, visit.login, visit.times
        id_, version = id_of(token), document.version_of(token)
        if predecessor is not None and login is None:
            remember = visit.remember[0] if visit.remember else predecessor.remember
            moved = predecessor._replace(id=id_, data={}, remember=remember, version=version)
            return times.used(moved, now, visit.until)
        kind = visit.kind
        idle_until = visit.until or now + (times.idle[kind] or times.expires)
        return Record(
            id=id_,
            data={},
            owner=None if login is None else login.owner,
            created_at=now,
            seen_at=now,
            expires_at=times.expiry(now, idle_until),
            label=None if login is None else login.label,
            remember=kind,
            version=version,
        )

    def _put_back(self, visit: Visit, image: bytes, record: Record | None = None) -> None:
        """Undo a swap whose successor cannot be stored, unless the session was ended since."""
        mark = document.marked(id_of(visit.token), self._clock()) | {
            "successor": id_of(visit.new_token),
            "ended": {"$exists": False},
        }
        self._sessions.attempt(lambda them: _raw(them).replace_one(mark, RawBSONDocument(image)))
        if self._limit is not None and record:  # A login meanwhile did not count the session.
            self._is_within(self._limit, record, visit.times)

    def _after_end(self, visit: Visit) -> Step:
        """Store the keys set since `destroy()` as a new session."""
        if visit.begins:
            return self._insert(visit, visit.draft)
        return Step(Outcome.DESTROYED, NOTHING, visit.draft.difference())

    def _successor(self, mark: Mark, visit: Visit) -> Record | None:
        """Follow a mark, through further marks, to a live session; None if there is none."""
        waits, passed = iter(_WAITS), {mark.id}
        while mark.successor is not None and mark.successor not in passed:
            found = self._found(mark.successor)
            if type(found) is Mark:
                passed.add(mark.successor)
                mark = found
                continue
            if isinstance(found, Record):
                return found if visit.times.end_of(found) > self._clock() else None
            wait = next(waits, None)
            if wait is None:
                return None
            sleep(wait)
        return None

    # Ending sessions by their ids.

    def end_chain(self, id: str, *, past_logins: bool = False) -> int | None:
        """End the session of an id, also under its new token.

        Return 1 for a live session, 0 for a session kept from being stored, and None for nothing to
        end. With `past_logins`, the search for the session follows logins of the same owner too.
        """
        this, passed, sign = id, set[str](), token_urlsafe(9)
        while this not in passed:
            found = self._end_one(this, sign)
            if found is False and passed:
                if self._forestall(this, sign):
                    return 0
                # It was stored just now; or it has expired, and is not deleted yet.
                found = self._end_one(this, sign)
            if type(found) is not Mark:
                return 1 if found else None
            passed.add(this)
            successor = found.followed(past_logins=past_logins)
            if successor is None:
                return None
            this = successor
        return None

    def rotated(self, id: str) -> str | None:
        """Return the id under which a rotation stores the session of `id`, if one took it."""
        found = self._found(id)
        return found.followed(past_logins=False) if type(found) is Mark else None

    def end_all(self, ids: Sequence[str], conditions: dict[str, Any] | None = None) -> int:
        """End the live sessions among `ids`, if they match the conditions; return how many.

        If the connection breaks in the midst, the number is of ids with neither a live session nor
        the mark of a moved session after the last try.
        """
        if not ids:
            return 0
        now, tries = self._clock(), 0
        among, unexpired = {"_id": {"$in": ids}}, {"expires_at": {"$gt": now}}
        live = among | document.SESSION | unexpired | (conditions or {}) | among
        moved = document.MOVED | unexpired

        def end(them: Documents) -> int:
            nonlocal tries
            tries += 1
            matched = them.update_many(live, document.ending(now)).matched_count
            if tries == 1:
                return matched
            # A session may have moved before the second try, so nobody has ended it.
            return len(ids) - them.count_documents(among | {"$or": [live, moved]})

        return self._sessions.attempt(end)

    def moved(self, ids: Sequence[str]) -> list[str]:
        """Return the ids with a session under them, or with a mark of a moved session."""
        among = {"_id": {"$in": ids}}
        return [one.id for one in self._outlines(among) if getattr(one, "successor", one)]

    def of_owner(self, owner: str) -> Iterator[Record | Mark]:
        """Return the sessions of an owner, without data, and the marks of moved sessions."""
        now = self._clock()
        theirs = {"owner": owner, "expires_at": {"$gt": now}} | document.OURS
        return self._outlines(theirs)

    def _outlines(self, conditions: dict[str, Any]) -> Iterator[Record | Mark]:
        """Return the sessions and marks that match, without data."""
        each = self._sessions.each
        found = self._sessions.attempt(
            lambda them: list(each(_raw(them).find(conditions, {"data": 0})))
        )
        outlines = (document.outline(document.fields_of(one.raw)) for one in found)
        return (one for one in outlines if one is not None)

    def _end_one(self, id: str, sign: str) -> bool | Mark:
        """End the live session of an id; else return the mark there, with the end noted on it.

        The note keeps a failed swap from being put back. One command does either, and a rotation
        takes two, so no session outruns the search.
        """
        version = document.SEALED if self._seals else document.PLAIN
        for _ in range(_MOST_LOOKS):
            mark = self._ended(id, version, sign)
            if mark is not None:
                return mark if mark.successor is not None else True
            there = self._found(id)
            if isinstance(there, Record):  # In the other form, or put back just now.
                version = there.version
            elif there is None or there.successor is None:
                # Our own tombstone, if an answer was lost, or the command carried out twice.
                return there is not None and there.ended == sign
        return False

    def _ended(self, id: str, version: int, sign: str) -> Mark | None:
        """Return the tombstone made of a session, or the mark there with the end noted on it."""
        now = self._clock()
        standing = document.standing(id, now, version)
        change = document.ending_or_noting(now, sign)
        found = self._sessions.attempt(
            lambda them: them.find_one_and_update(standing, change, return_document=True)
        )
        mark = None if found is None else document.read(found)
        return mark if type(mark) is Mark else None

    def _forestall(self, id: str, sign: str) -> bool:
        """Keep a session from being stored; False for an id already taken."""
        tombstone = RawBSONDocument(document.tombstone(id, self._clock(), sign))
        if self._sessions.insert(tombstone):
            return True
        there = self._found(id)  # The tombstone is our own, if an answer was lost.
        return type(there) is Mark and there.ended == sign

    def _is_within(self, limit: int, record: Record, times: Times) -> bool:
        """End an owner's oldest logins beyond the limit; say whether `record` lives on.

        Each login counts after its insert, so the last of several at once counts all of them. Each
        rotation counts too, because its session was for a moment stored nowhere. A login in the
        future was before the clock was set back, or on a machine whose clock is ahead.
        """
        if record.owner is None:
            return True
        now, found = self._clock(), self.of_owner(record.owner)
        logins = [one for one in found if type(one) is Record and times.end_of(one) > now]
        end = now + _AHEAD
        logins.sort(key=lambda one: (one.created_at <= end, one.created_at, one.id), reverse=True)
        excess = [one.id for one in logins[limit:]]
        count = self.end_all(excess)
        if count:
            audit.say("limit", "sessions ended by session_limit", owner=record.owner, count=count)
        # Another login may have ended it already, before this one has looked.
        return any(one.id == record.id for one in logins[:limit])

    # Looking.

    def _found(self, id_: str) -> Record | Mark | None:
        """Return the session or mark under an id, unless expired or not of our form."""
        begun = monotonic()
        try:
            found = self._sessions.find(id_)
        except StoreError as error:
            if not isinstance(error.__cause__, InvalidBSON):
                raise
            with self._sessions.deadline(begun):
                found = self._fields_of(id_)
        if found is None:
            return None
        known = document.read(found)
        if known is None:
            _log_foreign(id_)
            return None
        return known if known.expires_at > self._clock() else None

    def _fields_of(self, id_: str) -> dict[str, Any] | None:
        """Return what can be decoded of the document under an id; None without a document.

        The driver does not say whether the document or the rest of an answer was damaged.
        """
        raw = self._sessions.attempt(lambda them: list(_raw(them).find({"_id": id_})))
        return document.fields_of(raw[0].raw) if raw else None

    def _live(self, found: Record | Mark | None, visit: Visit) -> Known:
        """Return the meaning of a document to a visit; dead by the times of now is nothing."""
        if type(found) is Mark and found.successor is not None:
            audit.say("stale", "a token was used that another had replaced", id=found.id)
            return found
        if type(found) is not Record:
            return NOTHING
        if found.version != document.version_of(visit.token):
            # Somebody has put a plain document in place of a sealed one, or the reverse.
            _log_foreign(found.id)
            return NOTHING
        end = visit.times.end_of(found)
        if end <= self._clock():
            return NOTHING
        if end != found.expires_at:
            found = found._replace(expires_at=end)
        return found if found.version == document.PLAIN else self._unopened(found, visit)

    def _unopened(self, record: Record, visit: Visit) -> Record:
        """Return a sealed session whose values open when they are asked for."""
        seal, weakly = _seal_of(visit), ref(visit)  # The visit holds the data; no cycle is to be.

        def spoil() -> None:
            _log_foreign(record.id)
            if (of := weakly()) is not None:
                of.spoil()

        return record._replace(data=SealedData(record.data, seal, spoil))

    def _in_time(self) -> AbstractContextManager[None]:
        """Give all commands within the block the time of a single command."""
        return self._sessions.deadline(monotonic())

    # Telling the audit log.

    def _say_new(self, visit: Visit, record: Record) -> None:
        previous = None if type(visit.known) is Nothing else id_of(visit.token)
        owner = record.owner
        if visit.login is not None:
            audit.say("login", "a visitor logged in", id=record.id, owner=owner,
                      previous_id=previous, label=record.label)  # fmt: skip
        elif visit.state is State.REGENERATED and previous is not None:
            audit.say("regenerate", "a session was given a new token", id=record.id, owner=owner,
                      previous_id=previous)  # fmt: skip

    def _say_logout(self, visit: Visit, id_: str) -> None:
        known = visit.known
        owner = known.owner if type(known) is Record else None
        audit.say("logout", "a session was destroyed", id=id_, owner=owner)


def _log_foreign(id_: str) -> None:
    logger.warning("The document %s is not of our form: it is no session, and stays.", id_)


@cache
def _seal_class() -> type[Seal]:
    """Import the seal once, at the first need: an import statement takes as long as a seal."""
    try:
        from .seal import Seal
    except ImportError as error:
        raise StoreError(
            "A sealed session needs cryptography; pip install 'mongosession-wsgi[sealed]'"
        ) from error
    return Seal


def _seal_of(visit: Visit) -> Seal:
    """Return the seal of a visit's session, made once, because the keys take some time."""
    if visit.seal is None:
        visit.seal = _seal_class()(visit.token)
    return visit.seal


def _raw(them: Documents) -> Any:
    return them.with_options(codec_options=RAW)


MOVES: dict[State, dict[type[Known], Move]] = {
    State.UNTOUCHED: {},
    State.OPEN: {
        NotLooked: Life.write_unseen,
        Record: Life.write,
        Nothing: Life.start,
        Failure: Life.fail,
    },
    State.REGENERATED: {
        NotLooked: Life.regenerate,
        Record: Life.regenerate,
        Mark: Life.log_in_anew,
        Nothing: Life.start,
        Failure: Life.fail,
    },
    State.DESTROYED: {
        NotLooked: Life.end,
        Record: Life.end,
        Mark: Life.end_successor,
        Nothing: Life.start,
        Failure: Life.fail,
    },
    State.ENDED: {},
}
"""The moves of a commit, by the actions of the application and the knowledge of the request."""
