"""Serve the Bottle shop, with a panel that shows what its sessions do, and tell a transcript.

`make demo` keeps serving until Ctrl-C. `make demo ONCE=1` ends after the transcript, and fails if
any line of it is wrong. The sessions are in a MongoDB-compatible server that the demo starts and
ends, or in the MongoDB that MONGODB_URI names.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from browser import Browser, Page, sha256_of
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from mongosession_wsgi.embedded import EmbeddedServer, EmbeddedServerError

EXAMPLES = Path(__file__).parent
DATA = EXAMPLES.parent / ".demo"
COLOURED = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

signals: list[int] = []
"""The signals that came. The demo looks at them between two steps, and leaves no step half done."""

NOTHING = Page(visits=1, owner=None, cart={})[:3]
TEAS = {"Oolong": 2, "Earl Grey": 1}
LAPTOP = "Mozilla/5.0 (X11; Linux x86_64; rv:142.0) Gecko/20100101 Firefox/142.0"
PHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 "
    "(KHTML, like Gecko) Version/18.6 Mobile/15E148 Safari/604.1"
)


class Line(NamedTuple):
    """A line of the transcript: who does what, what that is to show, and whether it does."""

    who: str
    does: str
    shows: str
    holds: bool


def transcript(url: str, mongodb_uri: str) -> Iterator[Line]:
    """Use the shop as its visitors do, and check what comes of it."""
    alice, bob = Browser(url), Browser(url)
    yield from visits(alice)
    yield from fills_her_cart(alice)
    old, anonymous = Browser(url, alice.cookies), alice.token
    yield from logs_in(alice, old)
    yield from is_separate(alice, bob)
    replay, ended = Browser(url, alice.cookies), alice.token
    yield from logs_out(alice, replay)
    laptop, phone = Browser(url, user_agent=LAPTOP), Browser(url, user_agent=PHONE)
    yield from sees_her_devices(laptop, phone)
    yield from signs_one_out(laptop, phone, bob)
    yield from signs_out_the_rest(laptop, Browser(url))
    live = [alice.token, bob.token, replay.token]
    yield from is_stored(mongodb_uri, live, [anonymous, ended])


def visits(alice: Browser) -> Iterator[Line]:
    page = alice.get()
    yield Line("Alice", "GET /", "the first visit is counted", page.visits == 1)
    yield Line("", "", "she gets a token of 43 characters", len(alice.token) == 43)
    cookie = alice.cookie
    hidden = cookie is not None and cookie.has_nonstandard_attr("HttpOnly")
    lax = cookie is not None and cookie.get_nonstandard_attr("SameSite") == "Lax"
    yield Line("", "", "in a cookie that is HttpOnly and SameSite=Lax", hidden and lax)
    page = alice.get()
    yield Line("Alice", "GET /", "the second visit is counted", page.visits == 2)
    yield Line("", "", "without another cookie", not page.sets_cookie)


def fills_her_cart(alice: Browser) -> Iterator[Line]:
    page = alice.post("/cart", item="Oolong")
    yield Line("Alice", "POST /cart", "the cart holds 1 Oolong", page.cart == {"Oolong": 1})
    alice.post("/cart", item="Earl Grey")
    page = alice.post("/cart", item="Oolong")
    yield Line("Alice", "POST /cart, twice", "2 Oolong, 1 Earl Grey", page.cart == TEAS)


def logs_in(alice: Browser, old: Browser) -> Iterator[Line]:
    page = alice.post("/login", name="Alice")
    yield Line("Alice", "POST /login", "she is signed in", page.owner == "Alice")
    yield Line("", "", "under a new token", alice.token not in ("", old.token))
    yield Line("", "", "with her cart", page.cart == TEAS)
    page = old.get()
    yield Line("a thief", "GET / by her old token", "finds nothing", page[:3] == NOTHING)
    yield Line("", "", "and gets no cookie", not page.sets_cookie)


def is_separate(alice: Browser, bob: Browser) -> Iterator[Line]:
    page = bob.get()
    yield Line("Bob", "GET /, his own browser", "finds nothing of hers", page[:3] == NOTHING)
    page = bob.post("/login", name="Bob")
    yield Line("Bob", "POST /login", "he is signed in", page.owner == "Bob")
    page = alice.get()
    yield Line("Alice", "GET /", "is still Alice, with her cart", page[1:3] == ("Alice", TEAS))


def logs_out(alice: Browser, replay: Browser) -> Iterator[Line]:
    ended, page = alice.token, alice.post("/logout")
    yield Line("Alice", "POST /logout", "she is nobody, with no cart", page[:3] == NOTHING)
    page = replay.get()
    yield Line("a thief", "GET / by her last token", "finds nothing", page[:3] == NOTHING)
    yield Line("", "", "and starts under another token", replay.token not in ("", ended))


def sees_her_devices(laptop: Browser, phone: Browser) -> Iterator[Line]:
    owners = [browser.post("/login", name="Alice").owner for browser in (laptop, phone)]
    yield Line("Alice", "POST /login, on two", "she is signed in on both", owners == ["Alice"] * 2)
    this, other = laptop.devices().devices[:2]
    shown = (this.name, this.is_this) == ("Firefox on Linux", True)
    yield Line("Alice", "GET /devices", "this device is Firefox on Linux", shown)
    shown = (other.name, other.is_this) == ("Safari on iPhone", False)
    yield Line("", "", "the other one is Safari on iPhone", shown)


def signs_one_out(laptop: Browser, phone: Browser, bob: Browser) -> Iterator[Line]:
    before = laptop.devices().devices
    phones = before[1].id
    bob.sign_out(phones)
    kept = laptop.devices().devices == before
    yield Line("Bob", "POST /devices, by its id", "ends nothing of hers", kept)
    arrive = phone.begin("/cart", item="Oolong")
    notice, left = laptop.sign_out(phones)[:2]
    ended = notice == "1 device signed out." and phones not in [device.id for device in left]
    yield Line("Alice", "POST /devices", "the other one is signed out", ended)
    arrived, dead = arrive() == 303, laptop.devices().devices == left
    yield Line("Phone", "POST /cart, under way", "revives nothing", arrived and dead)
    yield Line("Phone", "GET /", "is nobody's", phone.get().owner is None)


def signs_out_the_rest(laptop: Browser, tablet: Browser) -> Iterator[Line]:
    tablet.post("/login", name="Alice")
    left = laptop.sign_out("others").devices
    alone = [device.is_this for device in left] == [True] and tablet.get().owner is None
    yield Line("Alice", "POST /devices, the rest", "only this device is left", alone)
    laptop.sign_out(left[0].id)
    yield Line("Alice", "POST /devices, this one", "signs her out here", laptop.get().owner is None)


def is_stored(mongodb_uri: str, live: list[str], ended: list[str]) -> Iterator[Line]:
    with MongoClient[dict[str, Any]](mongodb_uri) as client:
        documents = list(client["mongosession_shop"]["sessions"].find())
    tokens, dump = live + ended, repr(documents)
    sessions = {document["_id"] for document in documents if "data" in document}
    secret = not any(token in dump for token in tokens)
    yield Line("MongoDB", "was told by the shop", f"none of the {len(tokens)} tokens", secret)
    found = sessions.issuperset(sha256_of(token) for token in live)
    yield Line("", "", f"the SHA-256 of the {len(live)} that are live", found)
    yield Line("", "", "but not of Alice's, who signed out", sha256_of(ended[-1]) not in sessions)


def tell(lines: Iterator[Line]) -> bool:
    """Print the lines as they come; return whether all of them hold."""
    verdicts = []
    try:
        for who, does, shows, holds in lines:
            mark = painted("✓", 32) if holds else painted("✗", 31)
            print(f"  {who:<8} {painted(f'{does:<24}', 2)} {mark} {shows}", flush=True)
            verdicts.append(holds)
            check_signals()
    except (OSError, PyMongoError) as error:
        check_signals()
        print(f"  {painted('✗', 31)} {error}", flush=True)
        verdicts.append(False)
    print(f"\n{sum(verdicts)} of {len(verdicts)} lines are right.\n", flush=True)
    return all(verdicts)


def painted(text: str, colour: int) -> str:
    return f"\033[{colour}m{text}\033[0m" if COLOURED else text


def check_signals() -> None:
    """End the demo if a signal came; what failed just before, failed because of it."""
    if signals:
        sys.exit(128 + signals[0])


@contextmanager
def ended_by_signals(server: EmbeddedServer) -> Iterator[None]:
    """Have a signal end the server that is just starting: the start fails then, and cleans up."""

    def end(number: int, _frame: object) -> None:
        signals.append(number)
        server.stop()

    before = {number: signal.signal(number, end) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def listen() -> socket.socket:
    """Return a socket on port 8000, or the next one that is free."""
    for port in range(8000, 9000):
        with suppress(OSError):
            return socket.create_server(("127.0.0.1", port))
    sys.exit("Every port from 8000 to 8999 is taken.")


@contextmanager
def mongodb() -> Iterator[str]:
    """Yield the address of the MongoDB of MONGODB_URI, or of a server that ends with the block."""
    uri = os.environ.get("MONGODB_URI")
    if uri:
        print("Using the MongoDB of MONGODB_URI ...", flush=True)
        yield uri
        return
    print("Starting a MongoDB-compatible server, its data in .demo/ ...", flush=True)
    server = EmbeddedServer(DATA)
    with ended_by_signals(server):
        server.start()
    try:
        yield server.uri
    finally:
        server.stop()


@contextmanager
def gunicorn(mongodb_uri: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Serve the Bottle shop, with the two workers of gunicorn.conf.py; yield its address too."""
    with listen() as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        command = [sys.executable, "-m", "gunicorn", "--bind", f"fd://{listener.fileno()}"]
        shop = subprocess.Popen(
            [*command, "--log-level", "warning", "hood:app"],
            cwd=EXAMPLES,
            env=os.environ | {"MONGODB_URI": mongodb_uri},
            pass_fds=[listener.fileno()],
            start_new_session=True,  # A Ctrl-C is for this process, which ends the other in order.
        )
    try:
        yield shop, address
    finally:
        # At once: browsers keep connections open, and a worker that still imports would complain.
        # A Ctrl-C in the instant before its session is its own has ended it already.
        with suppress(ProcessLookupError):
            os.killpg(shop.pid, signal.SIGKILL)
        shop.wait()


def demonstrate(once: bool) -> None:
    """Start both servers, tell the transcript, and serve until a signal comes."""
    with mongodb() as uri:
        check_signals()
        print("Starting gunicorn with 2 workers ...\n", flush=True)
        with gunicorn(uri) as (shop, address):
            right = tell(transcript(address, uri))
            if not once:
                print(f"The shop is open at {painted(address, 36)} until Ctrl-C.", flush=True)
                while not signals and shop.poll() is None:
                    time.sleep(0.1)
                right = right and shop.poll() is None
                print("\nClosing the shop ...", flush=True)
    sys.exit(not right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--once", action="store_true", help="end after the transcript")
    once = parser.parse_args().once
    for number in SIGNALS:
        signal.signal(number, lambda number, _frame: signals.append(number))
    try:
        demonstrate(once)
    except EmbeddedServerError as error:
        check_signals()
        sys.exit(str(error))


if __name__ == "__main__":
    main()
