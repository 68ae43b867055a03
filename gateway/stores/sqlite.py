"""Records in one SQLite file: for one gate, with its workers, beside one instance of a service.

One thread writes. It takes whatever has queued up while it was busy and commits it as one transaction,
so that under load the cost of an fsync is shared. No call gets its reply before COMMIT returned.

Every verb is one statement that repeats in its WHERE what it saw; the look that follows a statement
which changed nothing stands in the same transaction (BEGIN IMMEDIATE: no other process writes between).
Time is CLOCK_BOOTTIME on a base in the file (store_clock.py), which outlives a restart and is never stepped.

With `durability=power` (synchronous=FULL) a commit survives power loss; with `process` (NORMAL) it
survives kill -9 only. See https://www.sqlite.org/pragma.html#pragma_synchronous.
"""

from __future__ import annotations

import asyncio
import os
import queue
import re
import resource
import sqlite3
import stat
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..awaitable import resolve, result_of
from ..core.record import Done, Found, NewClaim, NewKeep, Record, Settlement, Stamp, made_before, refused
from ..ports import (
    ClaimReply,
    Clock,
    GetReply,
    Nobody,
    Observer,
    Page,
    RecordTooLarge,
    RecordUnreadable,
    StoreAway,
    Stored,
    StoreFull,
    StoreUnusable,
    Subscription,
    WriteReply,
)
from .codec import HEADER, Unreadable, decode, encode, header, share_before, stored
from .findings import FULL, WRITES_REFUSED, ClaimRefusals, Finding, Severity, announce, unheard
from .replies import deliver
from .store_clock import CLOCK_STEPPED, StoreClock, host_boot

APPLICATION_ID = 0x4F6E6365  # "Once"
SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE records (
    name    BLOB NOT NULL PRIMARY KEY,
    state   INTEGER NOT NULL,
    holder  BLOB NOT NULL,
    lease   INTEGER NOT NULL,
    life    INTEGER NOT NULL,
    expires INTEGER NOT NULL,  -- milliseconds, by the store's time (store_clock.py)
    value   BLOB NOT NULL
);
CREATE INDEX records_by_expiry ON records (expires);
"""
#: Of each statement that writes: ?1 to ?6 are the name, state, holder, lease, life and value, ?7 is the store's time.
_PUT = """
INSERT OR REPLACE INTO records (name, state, holder, lease, life, expires, value)
VALUES (?1, ?2, ?3, ?4, ?5, ?7 + ?5, ?6)
"""
_CLAIM = """
INSERT INTO records (name, state, holder, lease, life, expires, value) VALUES (?1, ?2, ?3, ?4, ?5, ?7 + ?5, ?6)
ON CONFLICT (name) DO UPDATE SET state = ?2, holder = ?3, lease = ?4, life = ?5, expires = ?7 + ?5, value = ?6
WHERE expires <= ?7
"""
_MOVE = """
UPDATE records SET state = ?2, holder = ?3, lease = ?4, life = ?5, expires = ?7 + ?5, value = ?6
WHERE name = ?1 AND holder = ?8 AND state IN (?9, ?10) AND expires > ?7
  AND (?11 IS NULL OR state <> 1 OR life - (expires - ?7) >= lease + ?11)
"""
_DROP = """
DELETE FROM records WHERE name = ?1 AND holder = ?3 AND state IN (?4, ?5) AND expires > ?2
  AND (?6 IS NULL OR state <> 1 OR life - (expires - ?2) >= lease + ?6)
"""
_LOOK = "SELECT value, life - (expires - ?2) FROM records WHERE name = ?1 AND expires > ?2"
_WALK = "SELECT rowid, name, life, expires FROM records WHERE name > ? ORDER BY name LIMIT ?"
#: The expiry is tested again: between the choice and the deletion the name may have been claimed anew.
_SWEEP = """
DELETE FROM records WHERE expires <= ?1 AND name IN (SELECT name FROM records WHERE expires <= ?1 LIMIT 500)
"""

#: File systems on which SQLite's locks or its shared memory cannot be relied on
#: (https://www.sqlite.org/wal.html: "WAL does not work over a network filesystem").
# fmt: off
NETWORK_FILE_SYSTEMS = frozenset((
    "nfs", "nfs4", "cifs", "smb", "smb3", "smbfs", "ncpfs", "afs", "ceph", "fuse.ceph", "glusterfs",
    "fuse.glusterfs", "lustre", "beegfs", "gpfs", "gfs2", "ocfs2", "9p", "fuse.sshfs", "fuse.s3fs", "davfs",
    "fuse.davfs2", "coda",
))
# fmt: on

_BATCH = 512
_SWEEP_EVERY = 2.0
_BUSY_TIMEOUT_MS = 5_000
#: Bytes of a record beyond which it may be over a limit that smaller ones are not.
_LARGE = 64 << 10
#: Bytes that claims leave to answers: of the file's bound (an eighth of it where that is less), and of the disk.
_SPARE = 32 << 20
_SPARE_ON_DISK = 2 << 20
#: What an opening may be told that need not be so a moment later, and for how many seconds it then waits.
_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_OPEN_PAUSE = 0.01
#: Errors of a write that concern the file, and no record of its own.
_OF_THE_FILE = (
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB,
)  # fmt: skip

Work = Callable[[sqlite3.Connection, int], Any]
#: Name, state, holder, lease, life and value of a record.
_Row = tuple[bytes, int, bytes, int, int, bytes]
#: The work, its reply, whether it is a claim, and the bytes of the record that it writes.
_Item = tuple[Work, Callable[[Any], None], bool, int]
#: Replies, each with the result that it receives.
_Results = list[tuple[Callable[[Any], None], Any]]


class SqliteStore:
    """The store on `path`. `durability` is `power` or `process`; `max_bytes` bounds the file, 0 for no bound.

    Claims stop while there is still room, in the file and on the disk, and what is left is for the answers of
    those that are in flight: one that found no room would be told to its client as `not-stored`.
    """

    kind = "sqlite"

    def __init__(
        self,
        path: str | Path,
        clock: Clock,
        observer: Observer = Nobody(),  # noqa: B008  # a constant
        *,
        durability: str = "power",
        max_bytes: int = 0,
        say: Callable[..., None] = unheard,
        boot: Callable[[], tuple[str, int]] = host_boot,
    ) -> None:
        self._path = Path(path).absolute()
        self._folder = str(self._path.parent)
        self._clock = clock
        self._time = StoreClock(clock, boot)
        self._stepped: tuple[Finding, ...] = ()
        self._observer = observer
        self._say = say
        self._refusals = ClaimRefusals(clock.now)
        #: Whether a look must write, to find out whether a claim would be accepted: at first, and after one failed.
        self._failed = True
        self._durability = durability
        self._max_bytes = max_bytes
        self._most_pages = self._spare_pages = 0
        self._page_size = 4096
        self._short: str | None = None
        self._calls: list[_Item] = []
        self._queue: queue.SimpleQueue[list[_Item] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._identity: tuple[int, int] | None = None
        self._trouble = ""
        self._swept = 0.0

    # ── The port ──────────────────────────────────────────────────────────────────────────────────

    @property
    def available(self) -> bool:
        return self._thread is not None and not self._trouble

    @property
    def trouble(self) -> str:
        return self._trouble

    @property
    def claims_refused(self) -> str:
        return "" if self._refusals.finding is None else str(self._refusals.finding)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """`full` or `writes-refused` while it stands, and a step of the wall clock."""
        return (*self._refusals.findings, *self._stepped)

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        ready: asyncio.Future[Any] = self._loop.create_future()
        opened = partial(resolve, ready)
        self._thread = threading.Thread(target=self._run, args=(opened,), name="oncegate-sqlite", daemon=True)
        self._thread.start()
        try:
            await ready
        except BaseException:
            self._thread = None
            raise

    async def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._hand_over()
            self._queue.put(None)
            await asyncio.get_running_loop().run_in_executor(None, thread.join)

    def when_available(self, seconds: float, reply: Callable[[bool], None]) -> None:
        deliver(reply, self.available, self._observer)  # what makes it unavailable lasts until a restart

    def claim(self, name: bytes, claim: NewClaim | Record, reply: ClaimReply) -> None:
        row = _row(name, claim)

        def work(db: sqlite3.Connection, now: int) -> Done | Found | Stored:
            if (short := self._room(db)) and _look(db, name, now) is None:
                raise StoreFull(short)
            if db.execute(_CLAIM, (*row, now)).rowcount:
                return Done.WON
            value, age = db.execute(_LOOK, (name, now)).fetchone()
            if isinstance(claim, NewClaim) and (answer := stored(value, claim.fingerprint.mark)) is not None:
                return answer
            found = Found(decode(value), age)
            return Done.WON if made_before(found, claim) else found

        self._do(work, reply, claims=True)

    def settle(self, name: bytes, settlement: Settlement | NewKeep, reply: WriteReply) -> None:
        to = settlement if isinstance(settlement, NewKeep) else settlement.record
        movable = settlement.movable
        where = (settlement.holder, int(movable[0]), int(movable[-1]), None)
        again = settlement.tells_again
        self._change(name, to, where, Done.DONE, lambda found: refused(found, settlement), reply, again=again)

    def compare_and_swap(self, name: bytes, precondition: Stamp, to: Record | None, reply: WriteReply) -> None:
        def stands(found: Found) -> Done | Found:
            return Done.WON if to is not None and made_before(found, to) else found

        state = int(precondition.state)
        where = (precondition.holder, state, state, precondition.lapsed_for)
        self._change(name, to, where, Done.WON, stands, reply)

    def _change(
        self,
        name: bytes,
        to: Record | NewKeep | None,
        where: tuple[bytes, int, int, int | None],
        done: Done,
        stands: Callable[[Found], Done | Found],
        reply: WriteReply,
        *,
        again: bool = False,
    ) -> None:
        """Write a record, or delete it if `to` is None, if what stands is as `where` describes: its holder, one of two
        states, and for how long it must be past its lease. Reply `done`, or what `stands` makes of another record;
        `again`: `to` is also written if there is none."""
        row = None if to is None else _row(name, to)
        command, values = (_DROP, (name,)) if row is None else (_MOVE, row)

        def work(db: sqlite3.Connection, now: int) -> Done | Found:
            if db.execute(command, (*values, now, *where)).rowcount:
                return done
            if (found := _look(db, name, now)) is not None:
                return stands(found)
            if row is None or not again:
                return Done.GONE
            db.execute(_PUT, (*row, now))
            return Done.FORGOT

        self._do(work, reply, size=0 if row is None else len(row[-1]))

    def get(self, name: bytes, reply: GetReply) -> None:
        self._do(lambda db, now: _look(db, name, now), reply)

    def subscribe(self, name: bytes, notify: Callable[[], None]) -> Subscription:
        return Subscription()  # SQLite notifies no other process

    async def walk(self, cursor: str, most: int) -> Page:
        start = cursor.encode()
        page: Page = await result_of(self._do, lambda db, now: _walk(db, start, most, now))
        return page

    def _do(self, work: Work, reply: Callable[[Any], None], *, claims: bool = False, size: int = 0) -> None:
        if self._thread is None or self._trouble:
            deliver(reply, StoreAway(self._trouble or "the store is closed", ambiguous=False), self._observer)
        else:
            if not self._calls:
                assert self._loop is not None
                self._loop.call_soon(self._hand_over)
            self._calls.append((work, reply, claims, size))

    def _hand_over(self) -> None:
        """Hand the calls of this turn of the loop to the writer's thread, which is woken once for all of them."""
        calls, self._calls = self._calls, []
        if calls:
            self._queue.put(calls)

    # ── The writer's thread ───────────────────────────────────────────────────────────────────────

    def _run(self, opened: Callable[[Any], None]) -> None:
        try:
            db = self._open_file()
        except Exception as error:  # whatever it is: somebody waits to hear how the opening went
            self._in_loop(self._deliver, [(opened, _unopened(self._path, error))])
            return
        self._look_around(db)
        self._report_step()
        self._in_loop(self._deliver, [(opened, None)])
        try:
            while self._serve(db):
                pass
        finally:
            db.close()

    def _serve(self, db: sqlite3.Connection) -> bool:
        """Take what has queued up, commit it, tell. False once the store is being closed."""
        batch: list[_Item] = []
        closing = False
        try:
            while (calls := self._queue.get(timeout=_SWEEP_EVERY)) is not None:
                batch += calls
                if len(batch) >= _BATCH or self._queue.empty():
                    break
            else:
                closing = True
        except queue.Empty:
            pass
        for first in range(0, len(batch), _BATCH):
            self._in_loop(self._deliver, self._commit(db, batch[first : first + _BATCH]))
        if self._clock.now() - self._swept >= _SWEEP_EVERY:
            self._look_at_clock(db)
            self._sweep(db)
            self._look_around(db)
        return not closing

    def _commit(self, db: sqlite3.Connection, batch: list[_Item], *, again: bool = False) -> _Results:
        if not self._same_file():
            away = StoreAway(self._trouble, ambiguous=False)
            return [(reply, away) for _, reply, _, _ in batch]
        results: _Results = []
        self._short = None
        begun = committing = False
        try:
            db.execute("BEGIN IMMEDIATE")
            begun = True
            now = self._time.now()
            for work, reply, _, size in batch:
                try:
                    if size > _LARGE:
                        self._fits(db, size)
                    results.append((reply, work(db, now)))
                except Unreadable as error:
                    results.append((reply, RecordUnreadable(str(error))))
                except StoreAway as error:
                    if isinstance(error, StoreFull):
                        self._in_loop(self._found, self._full(error.why))
                    results.append((reply, error))
                except sqlite3.Error:
                    raise
                except Exception as error:
                    # Unforeseen: its caller hears of it, and the thread goes on for all others.
                    results.append((reply, StoreAway(f"SQLite: {error!r}", ambiguous=True)))
            self._time.note(db, now)
            committing = True
            db.execute("COMMIT")
        except sqlite3.Error as error:
            # A statement that does not fit may have rolled everything back by itself
            # (https://www.sqlite.org/lang_transaction.html); only a COMMIT leaves one not knowing.
            undone = self._roll_back(db) or not committing
            if len(batch) > 1 and begun and undone:
                # One that does not fit must not take the others with it: each by itself.
                return [result for item in batch for result in self._commit(db, [item])]
            size = batch[0][3] if len(batch) == 1 else 0
            if size > _LARGE and not again and self._writes_less(db, error):
                # What had been written to the log has left it: this record may find room there now. It is no claim, and
                # made twice it is the same.
                return self._commit(db, batch, again=True)
            if _code(error) == sqlite3.SQLITE_FULL and undone:
                away = StoreFull(f"SQLite: {error}")
            else:
                away = StoreAway(f"SQLite: {error}", ambiguous=not undone)
            if _code(error) == sqlite3.SQLITE_TOOBIG or (again and not isinstance(away, StoreFull)):
                away = RecordTooLarge(f"SQLite cannot write {size} bytes to {self._path}: {error}", size=size)
                away.ambiguous = not undone
            else:
                self._failed = True
                if any(claims for _, _, claims, _ in batch) and (finding := self._refusal(error)) is not None:
                    self._in_loop(self._found, finding)
            return [(reply, away) for _, reply, _, _ in batch]
        return results

    def _fits(self, db: sqlite3.Connection, size: int) -> None:
        """Raises RecordTooLarge if no file of this store ever has room for a record of `size` bytes."""
        # A page of the log has 24 bytes more than one of the file, and the file has a few pages besides the record's.
        needed = size + size // 128 + (64 << 10)
        longest, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        for limit, what in (
            (self._most_pages * self._page_size, "max_bytes"),
            (0 if longest == resource.RLIM_INFINITY else longest, "the limit of this process on files (ulimit -f)"),
            (db.getlimit(sqlite3.SQLITE_LIMIT_LENGTH), "SQLite's limit of a value"),
        ):
            if limit and needed > limit:
                raise RecordTooLarge(
                    f"SQLite has no room for a record of {size} bytes in {self._path}: {what} is {limit} bytes",
                    size=size,
                    limit=limit,
                )

    def _writes_less(self, db: sqlite3.Connection, error: sqlite3.Error) -> bool:
        """Whether a small record can be written after a large one failed with an error of the file."""
        if _code(error) not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            return False
        try:
            db.execute("PRAGMA wal_checkpoint(PASSIVE)")
            self._play(db)
        except sqlite3.Error:
            self._roll_back(db)
            return False
        return True

    @staticmethod
    def _roll_back(db: sqlite3.Connection) -> bool:
        """Whether the transaction is known to be undone. A COMMIT that failed may have reached the disk
        unless the transaction is still open to be rolled back."""
        if not db.in_transaction:
            return False
        try:
            db.execute("ROLLBACK")
        except sqlite3.Error:
            return False
        return True

    def _in_loop(self, call: Callable[[Any], None], argument: Any) -> None:
        """Call this in the thread of the loop, soon."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(call, argument)
        except RuntimeError:
            pass  # the loop is closed, and its callers with it

    def _deliver(self, results: _Results) -> None:
        for reply, result in results:
            deliver(reply, result, self._observer)

    def _sweep(self, db: sqlite3.Connection) -> None:
        self._swept = self._clock.now()
        if self._trouble or not self._same_file():
            return
        try:
            while db.execute(_SWEEP, (self._time.now(),)).rowcount == 500 and self._queue.empty():
                pass
        except sqlite3.Error:
            self._roll_back(db)  # full, or busy: next time

    def _look_at_clock(self, db: sqlite3.Connection) -> None:
        before = self._time.finding
        try:
            self._time.look(db)
        except sqlite3.Error:
            self._roll_back(db)  # full, or busy: next time
        if self._time.finding != before:
            self._report_step()

    def _report_step(self) -> None:
        """Hand a step of the wall clock to the loop, or that it was undone."""
        self._in_loop(self._found_step, () if self._time.finding is None else (self._time.finding,))

    def _found_step(self, found: tuple[Finding, ...]) -> None:
        before, self._stepped = self._stepped, found
        announce(before, found, self._observer, self._say, alarming=(CLOCK_STEPPED,))

    def _look_around(self, db: sqlite3.Connection) -> None:
        """Find out whether a claim would be accepted now. After a write that failed, only a write shows that."""
        if self._trouble:
            return
        try:
            short = self._short_of_room(db)
            finding = self._full(short) if short else None
            if self._failed or finding is not None:
                # Move what stands in the log to the file while the disk has room for that. The log's own room then
                # serves settlements and deletions, even if other programs take the rest of the disk.
                db.execute("PRAGMA wal_checkpoint(PASSIVE)")
            if self._failed:
                self._play(db)
                self._failed = False
        except (sqlite3.Error, OSError) as error:
            self._roll_back(db)
            finding = self._refusal(error)
        if finding is not None or self._refusals.finding is not None:
            self._in_loop(self._found, finding)

    def _play(self, db: sqlite3.Connection) -> None:
        """Write as a claim would, and delete what was written. It has no name of a record, and has expired."""
        db.execute(_PUT, (b"probe", 0, b"", 0, 0, bytes(256), 0))
        db.execute("DELETE FROM records WHERE name = ?", (b"probe",))

    def _full(self, why: str) -> Finding:
        change = "Free space on its disk" + (", or raise max_bytes in the store's URL" if self._max_bytes else "")
        return Finding(FULL, Severity.REFUSE, f"SQLite has no room for new keys: {why}. {change}.")

    def _refusal(self, error: Exception) -> Finding | None:
        """The finding about a write that failed, if every other write would fail too."""
        code = _code(error)
        if code == sqlite3.SQLITE_FULL:
            return self._full(f"{self._path}: {error}")
        if code not in _OF_THE_FILE and not isinstance(error, OSError):
            return None
        change = "Look at its disk (its free space, quotas, mount options) and at what else has the file open."
        text = f"SQLite refuses writes to {self._path}: {error}. {change}"
        return Finding(WRITES_REFUSED, Severity.REFUSE, text)

    def _found(self, finding: Finding | None) -> None:
        """Take what was found about new claims; None if one would be accepted."""
        before = self._refusals.findings
        if finding is None:
            self._refusals.accepted()
        else:
            self._refusals.refused(finding)
        announce(before, self._refusals.findings, self._observer, self._say)

    def _open_file(self) -> sqlite3.Connection:
        if sqlite3.sqlite_version_info < (3, 35):
            raise StoreUnusable(f"SQLite {sqlite3.sqlite_version} is too old; 3.35 or later is needed")
        check_place(self._path)
        # Where waiting for a lock might be a deadlock SQLite answers BUSY at once, whatever the busy timeout says: at
        # the change to WAL, and while another connection recovers one (https://www.sqlite.org/rescode.html#busy).
        # Gates that start together on one fresh file meet both. So the whole opening is made again, on a connection
        # that holds no lock yet.
        until = self._clock.now() + _BUSY_TIMEOUT_MS / 1000
        while True:
            try:
                return self._connect()
            except sqlite3.OperationalError as error:
                if _code(error) not in _LOCKED or self._clock.now() >= until:
                    raise
            time.sleep(_OPEN_PAUSE)

    def _connect(self) -> sqlite3.Connection:
        """A connection to the file, which is made where it is not there yet."""
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            db.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
            # First of all, and in one reading (another gate may be making it): a journal mode is written
            # into the file, and it may not be ours.
            db.execute("BEGIN")
            self._check(db)
            db.execute("COMMIT")
            (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise StoreUnusable(
                    f"{self._path}: its file system ({_kind(self._path)}) has no shared memory "
                    f"for a write-ahead log (the journal mode stays `{mode}`). Use a local disk, or a redis:// store."
                )
            db.execute(f"PRAGMA synchronous = {'FULL' if self._durability == 'power' else 'NORMAL'}")
            db.execute("BEGIN IMMEDIATE")
            if self._check(db):
                for statement in _SCHEMA.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            self._time.set(db)
            db.execute("COMMIT")
            size = self._page_size = db.execute("PRAGMA page_size").fetchone()[0]
            if self._max_bytes:
                self._most_pages = max(self._max_bytes // size, 16)
                self._spare_pages = min(self._most_pages // 8, _SPARE // size)
                db.execute(f"PRAGMA max_page_count = {self._most_pages}")
            file = os.stat(self._path)
        except BaseException:
            db.close()
            raise
        self._identity = (file.st_dev, file.st_ino)
        return db

    def _check(self, db: sqlite3.Connection) -> bool:
        """Whether the file is empty, and to be made. Raises StoreUnusable where it is not ours."""
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application == 0 and version == 0 and tables == 0:
            return True
        if application != APPLICATION_ID:
            raise StoreUnusable(f"{self._path} belongs to another program; name another file")
        if version != SCHEMA_VERSION:
            raise StoreUnusable(
                f"{self._path} was made by another version of oncegate (its format is {version}, this one writes "
                f"{SCHEMA_VERSION}); start that version, or name another file and accept that live keys are forgotten"
            )
        return False

    def _room(self, db: sqlite3.Connection) -> str:
        """`_short_of_room`, looked at once for a batch: a system call and two statements for each claim would show."""
        if self._short is None:
            self._short = self._short_of_room(db)
        return self._short

    def _short_of_room(self, db: sqlite3.Connection) -> str:
        """Why no more is claimed for want of room; empty while there is enough. Pages that were freed are room."""
        if self._most_pages:
            (pages,) = db.execute("PRAGMA page_count").fetchone()
            if self._most_pages - pages + _free(db) <= self._spare_pages:
                return f"what is left of the max_bytes of {self._path} is kept for answers"
        disk = os.statvfs(self._folder)
        room = disk.f_bavail * disk.f_frsize
        if disk.f_blocks and room <= _SPARE_ON_DISK and room + _free(db) * self._page_size <= _SPARE_ON_DISK:
            return f"what is left of the disk of {self._path} is kept for answers"
        return ""

    def _same_file(self) -> bool:
        """Whether the path still leads to the file that was opened. Another one in its place would
        be written by the next gate that starts, and the two would forget each other's keys."""
        try:
            file = os.stat(self._path)
        except OSError:
            file = None
        if file is None or (file.st_dev, file.st_ino) != self._identity:
            self._trouble = (
                f"{self._path} was {'removed' if file is None else 'replaced'} under the running gate; "
                "put the file back and restart the gate"
            )
        return not self._trouble


def _free(db: sqlite3.Connection) -> int:
    """Pages of the file that hold nothing."""
    (free,) = db.execute("PRAGMA freelist_count").fetchone()
    assert isinstance(free, int)
    return free


def _row(name: bytes, record: Record | NewClaim | NewKeep) -> _Row:
    """What is written of a record: its columns but for `expires`, which the time of the transaction decides."""
    return (name, int(record.state), record.holder, record.lease, record.life, encode(record))


def _look(db: sqlite3.Connection, name: bytes, now: int) -> Found | None:
    row = db.execute(_LOOK, (name, now)).fetchone()
    return None if row is None else Found(decode(row[0]), row[1])


def _walk(db: sqlite3.Connection, start: bytes, most: int, now: int) -> Page:
    rows = db.execute(_WALK, (start, most)).fetchall()
    records: list[tuple[bytes, Found]] = []
    unreadable = 0
    for row, name, life, expires in rows:
        if expires <= now:
            continue  # it has ended, and was not swept yet
        # A SELECT of the first bytes would read the whole body (https://www.sqlite.org/c3ref/blob_open.html).
        with db.blobopen("records", "value", row, readonly=True) as value:
            try:
                records.append((name, Found(header(value.read(HEADER)), life - (expires - now))))
            except Unreadable:
                unreadable += 1
    on = rows[-1][1].decode() if len(rows) == most else ""
    return Page(tuple(records), on, len(rows), unreadable, share_before(on))


def _code(error: Exception) -> int:
    """The primary error code; 0 if the error has none."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def _unopened(path: Path, error: Exception) -> Exception:
    """Turn what kept the file from being opened into StoreUnusable, with the cause; leave what is unforeseen."""
    if isinstance(error, OSError):
        return StoreUnusable(f"{path}: {error.strerror or error}. {_ANOTHER}")
    if not isinstance(error, sqlite3.Error):
        return error
    code, name = _code(error), getattr(error, "sqlite_errorname", "")
    if code in _LOCKED:
        cause = (
            f"another program has held a lock on it for {_BUSY_TIMEOUT_MS // 1000} s, or its file system "
            f"({_kind(path)}) has no locks. End that program, or {_ANOTHER.lower()}"
        )
    else:
        cause = (_CAUSES[code](path) if code in _CAUSES else "") or _ANOTHER
    return StoreUnusable(f"{path}: {error} ({name}): {cause}")


def _kind(path: Path) -> str:
    return file_system(Path(os.path.realpath(path)).parent) or "unknown"


_ANOTHER = "Name another file in `store`."


def _unwritable(path: Path) -> str:
    """Why no file can be made or written at `path`; empty if the reason is not found."""
    folder = path.parent
    if os.path.isdir(path):
        return f"it is a directory. {_ANOTHER}"
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        return "its file system is mounted read-only. Mount it read-write, or name another file in `store`."
    for place in (folder, path):
        if os.path.exists(place) and not os.access(place, os.W_OK):
            return f"user {os.geteuid()} may not write to {place}. Give it to that user (chown)."
    return ""


_CAUSES: dict[int, Callable[[Path], str]] = {
    sqlite3.SQLITE_CANTOPEN: _unwritable,
    sqlite3.SQLITE_READONLY: _unwritable,
    sqlite3.SQLITE_PERM: _unwritable,
    sqlite3.SQLITE_CORRUPT: lambda _: (
        "the file is damaged. Restore it, or name another file in `store` and accept that live keys are forgotten."
    ),
    sqlite3.SQLITE_FULL: lambda _: "the disk, or max_bytes, has no room. Make room.",
    sqlite3.SQLITE_IOERR: lambda path: (
        f"reading or writing failed on its file system ({_kind(path)}): it may be full, or the disk may fail. "
        "Make room, and look at the kernel's log."
    ),
}

#: Where the kernel says what is mounted where (proc(5)), and how it spells a space in a path.
MOUNTS = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(rb"\\([0-7]{3})")


def check_place(path: Path) -> None:
    """Whether a file of ours can be at `path`. Raises StoreUnusable."""
    folder = Path(os.path.realpath(path)).parent  # the file may be a link to one elsewhere
    try:
        there = stat.S_ISDIR(os.stat(folder).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        there = False
    if not there:
        raise StoreUnusable(f"{path}: the folder {folder} does not exist; make it first")
    if (kind := file_system(folder)) in NETWORK_FILE_SYSTEMS:
        raise StoreUnusable(
            f"{path} is on a network file system ({kind}), where SQLite's locks do not hold; "
            "use a local disk, or a redis:// store"
        )


def file_system(folder: Path) -> str:
    """The type of the file system that `folder` is on, as the kernel names it; empty if it does not say."""
    try:
        mounts = MOUNTS.read_bytes()
    except OSError:
        return ""
    here = os.fsencode(os.path.realpath(folder))
    best, kind = b"", b""
    for line in mounts.strip().split(b"\n"):
        left, _, right = line.partition(b" - ")
        point = _ESCAPED.sub(lambda found: bytes((int(found[1], 8),)), left.split(b" ")[4])
        if (here == point or here.startswith(point.rstrip(b"/") + b"/")) and len(point) >= len(best):
            best, kind = point, right.split(b" ")[0]
    return kind.decode()
