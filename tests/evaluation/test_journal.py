import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tests.evaluation.made_chunks import chunk_bits, chunks, plain_chunk

from evalmode.certificate import BadSampleRecord
from evalmode.errors import EvalmodeError, JournalError, MissingExtraError, UsageError
from evalmode.evaluation import journal_file
from evalmode.evaluation.chunk import Chunk
from evalmode.evaluation.journal import Journal

IDENTITY = {"model": "3f2a" * 16, "plan": "eager fp32", "data": "99" * 32}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.sqlite"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A journal that was closed after five chunks, and what is in it."""
    folder = tmp_path_factory.mktemp("written")
    given_chunks = [plain_chunk(range(4 * k, 4 * k + 4), bad=["x"] * (k == 2)) for k in range(5)]
    with Journal.open(folder / "journal.sqlite", IDENTITY) as journal:
        for chunk in given_chunks:
            journal.append(chunk)
    return folder / "journal.sqlite", [chunk_bits(chunk) for chunk in given_chunks]


def recorded(path, identity=IDENTITY):
    with Journal.open(path, identity) as journal:
        return [chunk_bits(chunk) for chunk in journal.chunks()]


def snapshot(path, folder):
    """The files as they are on the disk now, as a kill would leave them."""
    folder.mkdir(exist_ok=True)
    for suffix in ("", "-wal"):
        source = path.with_name(path.name + suffix)
        if source.exists():
            shutil.copy(source, folder / source.name)
    return folder / path.name


def test_what_is_recorded_is_there_when_opened_again(path):
    with Journal.open(path, IDENTITY) as journal:
        assert (journal.done, journal.finished, list(journal.chunks())) == (0, None, [])
        journal.append(plain_chunk([0, 1, 5], bad=["2"]))
        assert journal.done == 4
    with Journal.open(path, IDENTITY) as journal:
        assert journal.done == 4
        assert journal.has(np.array([0, 1, 2, 5])).tolist() == [True, True, False, True]
        journal.append(plain_chunk([3, 4]))
        journal.append(plain_chunk([2]))
    assert recorded(path) == [
        chunk_bits(plain_chunk([0, 1, 5], bad=["2"])),
        *map(chunk_bits, map(plain_chunk, ([3, 4], [2]))),
    ]


@given(st.lists(chunks(), max_size=4))
@settings(max_examples=20)
def test_any_chunks_come_back_bit_for_bit(tmp_path_factory, drawn):
    path = tmp_path_factory.mktemp("any") / "journal.sqlite"
    kept, there = [], set()
    for chunk in drawn:
        with Journal.open(path, IDENTITY) as journal:
            if kept and kept[-1] == chunk_bits(chunk):  # the last one again changes nothing
                journal.append(chunk)
                continue
            if there & set(chunk.done_positions.tolist()):
                with pytest.raises(UsageError, match="already"):
                    journal.append(chunk)
                continue
            journal.append(chunk)
        there |= set(chunk.done_positions.tolist())
        kept.append(chunk_bits(chunk))
    assert recorded(path) == kept


@given(st.data(), st.lists(st.integers(1, 2000), min_size=1, max_size=6))
@settings(max_examples=15)
def test_a_kill_at_any_byte_of_the_log_leaves_the_first_chunks(tmp_path_factory, data, sizes):
    """The files are copied after each chunk, and the copy's log cut anywhere, as a torn write would leave it."""
    folder = tmp_path_factory.mktemp("torn")
    kept, first = [], 0
    with Journal.open(folder / "journal.sqlite", IDENTITY) as journal:
        for number, size in enumerate(sizes):
            journal.append(chunk := plain_chunk(range(first, first + size)))
            first += size
            kept.append(chunk_bits(chunk))
            assert recorded(snapshot(journal.path, folder / f"{number}")) == kept
        torn = snapshot(journal.path, folder / "torn")
    log = torn.with_name("journal.sqlite-wal")
    whole = log.read_bytes()
    log.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    left = recorded(torn)
    assert left == kept[: len(left)]
    with Journal.open(torn, IDENTITY) as journal:  # and it goes on from there
        journal.append(plain_chunk([10**6]))
    assert recorded(torn) == [*left, chunk_bits(plain_chunk([10**6]))]


class Use(RuleBasedStateMachine):
    """Any order of what can happen to a journal, beside a list of what was recorded."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "journal.sqlite"
        self.number = 0
        self.kept, self.finished = [], None
        self.journal = Journal.open(self.path, IDENTITY)

    @rule(sizes=st.lists(st.integers(0, 300), min_size=1, max_size=3), bad=st.integers(0, 2))
    def record(self, sizes, bad):
        for size in sizes:
            first = 1000 * self.number
            self.number += 1
            chunk = plain_chunk(range(first, first + size), bad=[f"{first} {k}" for k in range(bad)])
            if self.finished is not None:
                with pytest.raises(UsageError):
                    self.journal.append(chunk)
                continue
            self.journal.append(chunk)
            if not self.kept or chunk_bits(self.kept[-1]) != chunk_bits(chunk):
                self.kept.append(chunk)

    @rule()
    def record_again(self):
        """The last one again changes nothing, as after Ctrl-C; one before it is refused."""
        if self.kept and self.finished is None:
            self.journal.append(self.kept[-1])
        held = [chunk for chunk in self.kept[:-1] if chunk.samples]
        if held:
            with pytest.raises(UsageError):
                self.journal.append(held[-1])

    @rule()
    def fill_the_disk(self):
        pages = self.journal._database.execute("PRAGMA page_count").fetchone()[0]
        self.journal._database.execute(f"PRAGMA max_page_count = {pages}")
        first = 1000 * self.number
        self.number += 1
        if self.finished is None:
            with pytest.raises(JournalError, match="the disk is full"):
                self.journal.append(plain_chunk(range(first, first + 900)))
        self.journal._database.execute("PRAGMA max_page_count = 1000000")

    @rule(result=st.binary(min_size=1, max_size=20))
    def finish(self, result):
        if self.finished is None:
            self.journal.finish(result)
            self.finished = result

    @rule()
    def open_again(self):
        self.journal.close()
        self.journal = Journal.open(self.path, IDENTITY)

    @rule()
    def be_killed(self):
        self.number += 1
        left = snapshot(self.path, self.folder / f"killed {self.number}")
        self.journal.close()
        self.path = left
        self.journal = Journal.open(self.path, IDENTITY)

    @invariant()
    def holds_what_was_recorded(self):
        assert list(map(chunk_bits, self.journal.chunks())) == list(map(chunk_bits, self.kept))
        assert self.journal.done == sum(len(chunk.done_positions) for chunk in self.kept)
        assert self.journal.finished == self.finished

    def teardown(self):
        self.journal.close()
        shutil.rmtree(self.folder)


TestUse = Use.TestCase
TestUse.settings = settings(max_examples=12, stateful_step_count=15)


def test_a_result_is_kept_and_ends_the_journal(path):
    with Journal.open(path, IDENTITY) as journal:
        journal.append(plain_chunk([0]))
        journal.finish(b'{"samples": 1}')
        journal.finish(b'{"samples": 1}')
        with pytest.raises(UsageError, match="finished"):
            journal.append(plain_chunk([1]))
        with pytest.raises(UsageError, match="another result"):
            journal.finish(b"{}")
    with Journal.open(path, IDENTITY) as journal:
        assert journal.finished == b'{"samples": 1}'
        assert [chunk_bits(chunk) for chunk in journal.chunks()] == [chunk_bits(plain_chunk([0]))]
        with pytest.raises(UsageError, match="finished"):
            journal.append(plain_chunk([1]))


def test_a_sample_is_recorded_once(path):
    with Journal.open(path, IDENTITY) as journal:
        journal.append(plain_chunk([3, 4]))
        with pytest.raises(UsageError, match=r"position 4 is in .* already"):
            journal.append(plain_chunk([5, 4]))
    assert recorded(path) == [chunk_bits(plain_chunk([3, 4]))]


def test_a_closed_journal_says_so(path):
    journal = Journal.open(path, IDENTITY)
    journal.close()
    journal.close()
    with pytest.raises(UsageError, match="is closed"):
        journal.append(plain_chunk([0]))
    assert recorded(path) == []


def test_every_commit_is_synchronous_and_in_a_log(path):
    with Journal.open(path, IDENTITY) as journal:
        asked = {
            name: journal._database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
        }
    assert asked == {"journal_mode": "wal", "synchronous": 2}
    assert sorted(file.name for file in path.parent.iterdir()) == ["journal.sqlite", "journal.sqlite.lock"]


# A journal of another evaluation


def test_another_identity_is_refused_with_exactly_what_differs(path):
    with Journal.open(path, IDENTITY) as journal:
        journal.append(plain_chunk([0]))
    other = {"model": "3f2a" * 15 + "0000", "plan": IDENTITY["plan"], "data": IDENTITY["data"], "limit": "100"}
    with pytest.raises(JournalError) as caught:
        Journal.open(path, other)
    assert str(caught.value).splitlines() == [
        f"the journal '{path}' is of another evaluation",
        "  limit: nothing in the journal, '100' now",
        f"  model: '…{'3f2a' * 7}' in the journal, '…{'3f2a' * 6}0000' now",
        "  expected: the same model, plan, data and settings",
        f"  fix: evaluate with those, name another journal, or delete '{path}' to start again",
    ]
    assert recorded(path) == [chunk_bits(plain_chunk([0]))]


@given(
    st.dictionaries(st.sampled_from("abc"), st.text(max_size=200)),
    st.dictionaries(st.sampled_from("abc"), st.text(max_size=200)),
)
@settings(max_examples=25)
def test_identities_are_told_apart_whatever_they_say(tmp_path_factory, first, second):
    path = tmp_path_factory.mktemp("identity") / "journal.sqlite"
    try:
        Journal.open(path, first).close()
    except UsageError:  # half of a surrogate pair is no text
        assert not path.exists()
        return
    if first == second:
        Journal.open(path, second).close()
        return
    with pytest.raises(EvalmodeError) as caught:
        Journal.open(path, second)
    if isinstance(caught.value, JournalError):
        told = {line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:-2] if ": " in line}
        assert told >= {name for name in "abc" if first.get(name) != second.get(name)}
        assert max(map(len, str(caught.value).splitlines())) < 500
    Journal.open(path, first).close()


def test_long_values_are_cut_to_where_they_differ(path):
    Journal.open(path, {"settings": "a" * 300}).close()
    with pytest.raises(JournalError) as caught:
        Journal.open(path, {"settings": "a" * 200 + "b" + "a" * 99})
    line = str(caught.value).splitlines()[1]
    assert line == f"  settings: '…{'a' * 48}…' in the journal, '…{'a' * 24}b{'a' * 23}…' now"
    with pytest.raises(JournalError) as caught:
        Journal.open(path, {"settings": "a" * 301})
    there, here = str(caught.value).splitlines()[1].split(" in the journal, ")
    assert there.removeprefix("  settings: ") != here.removesuffix(" now")


@pytest.mark.parametrize("identity", [{"limit": 3}, {3: "limit"}, {"model": "\ud800"}])
def test_an_identity_that_is_no_text_is_refused(path, identity):
    with pytest.raises(UsageError, match="expected: text by name"):
        Journal.open(path, identity)
    assert not path.exists()


# Two processes


def test_a_second_journal_on_the_file_is_refused_with_who_holds_it(path):
    with Journal.open(path, IDENTITY) as journal:
        with pytest.raises(JournalError, match=f"in use by process {os.getpid()} on "):
            Journal.open(path, IDENTITY)
        journal.append(plain_chunk([0]))
        asking = f"from evalmode.evaluation.journal import Journal; Journal.open({str(path)!r}, {{}})"
        run = subprocess.run([sys.executable, "-c", asking], capture_output=True, text=True, check=False, timeout=120)
        assert f"JournalError: the journal '{path}' is in use by process {os.getpid()} on " in run.stderr
        journal.append(plain_chunk([1]))
    assert len(recorded(path)) == 2


def test_a_folder_that_takes_no_lock_is_not_called_a_journal_in_use():
    with pytest.raises(JournalError, match=r"cannot lock the journal .*cannot be made") as caught:
        Journal.open(Path("/proc/run.journal"), IDENTITY)
    assert "folder that you may write to" in str(caught.value)


def test_two_names_of_one_file_are_one_journal(path):
    Journal.open(path, IDENTITY).close()
    other = path.with_name("other name")
    other.symlink_to(path)
    with Journal.open(path, IDENTITY) as journal:
        journal.append(plain_chunk([0]))
        with pytest.raises(JournalError, match=f"in use by process {os.getpid()} on "):
            Journal.open(other, IDENTITY)
    assert recorded(other) == [chunk_bits(plain_chunk([0]))]


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_file_system_without_locks_is_told(path, monkeypatch):
    def missing(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", missing)
    with pytest.raises(JournalError, match=r"keeps no locks[\s\S]*local disk|cannot lock"):
        Journal.open(path, IDENTITY)
    monkeypatch.undo()
    assert recorded(path) == []


def test_a_refused_open_gives_the_lock_back(path):
    Journal.open(path, IDENTITY).close()
    for _ in range(2):
        with pytest.raises(JournalError, match="another evaluation"):
            Journal.open(path, {})
    Journal.open(path, IDENTITY).close()


def test_a_child_that_outlives_a_killed_owner_does_not_hold_the_journal(path):
    """A loader's workers are forked with every open file, and die some seconds after their parent."""
    reading, writing = os.pipe()
    ready, said = os.pipe()
    owner = os.fork()
    if owner == 0:
        journal = Journal.open(path, IDENTITY)
        journal.append(plain_chunk([0]))
        if os.fork() == 0:
            os.close(writing)
            os.write(said, b"x")
            os.read(reading, 1)  # until the test closes its end
        else:
            os.kill(os.getpid(), 9)
        os._exit(0)
    assert os.waitpid(owner, 0)[1] == 9
    assert os.read(ready, 1) == b"x"
    try:
        assert recorded(path) == [chunk_bits(plain_chunk([0]))]
    finally:
        for end in (reading, writing, ready, said):
            os.close(end)


def test_a_foreign_program_that_holds_the_database_is_told(written, tmp_path):
    copy = snapshot(written[0], tmp_path)
    with closing(sqlite3.connect(copy, isolation_level=None)) as browser:
        browser.execute("PRAGMA locking_mode = EXCLUSIVE")
        browser.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalError, match="in use by another program"):
            Journal.open(copy, IDENTITY)
    assert recorded(copy) == written[1]


# What is no journal


def test_what_is_no_journal_is_refused_and_left_alone(tmp_path):
    def refused(name, said):
        before = (tmp_path / name).read_bytes() if (tmp_path / name).is_file() else None
        with pytest.raises(JournalError, match=said):
            Journal.open(tmp_path / name, IDENTITY)
        if before is not None:
            assert (tmp_path / name).read_bytes() == before

    (tmp_path / "empty").touch()
    refused("empty", "is empty")
    (tmp_path / "text").write_text("a,b\n1,2\n" * 100)
    refused("text", "is no journal")
    (tmp_path / "short").write_bytes(b"SQLite format 3\0")
    refused("short", "is no journal")
    (tmp_path / "folder").mkdir()
    refused("folder", "is a folder")
    os.mkfifo(tmp_path / "pipe")
    refused("pipe", "no regular file")
    with closing(sqlite3.connect(tmp_path / "foreign")) as database:
        database.execute("CREATE TABLE t (a)")
    refused("foreign", "no journal of evalmode")
    refused("text/below", "cannot lock")


def test_a_newer_format_is_refused_with_the_fix(written, tmp_path):
    copy = snapshot(written[0], tmp_path)
    with closing(sqlite3.connect(copy)) as database:
        database.execute("PRAGMA user_version = 4")
    with pytest.raises(JournalError, match=r"journal format 4[\s\S]*pip install --upgrade evalmode"):
        Journal.open(copy, IDENTITY)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON chunks BEGIN DELETE FROM chunks; END",
        "CREATE VIEW v AS SELECT load_extension('x')",
        "CREATE TABLE more (a)",
        "CREATE INDEX i ON chunks (abs(number))",
    ],
)
def test_a_planted_schema_is_refused(written, tmp_path, statement):
    copy = snapshot(written[0], tmp_path)
    with closing(sqlite3.connect(copy)) as database:
        database.execute(statement)
    with pytest.raises(JournalError, match="tables are not those of a journal"):
        Journal.open(copy, IDENTITY)


def test_a_place_that_cannot_be_written_is_told():
    for place in ("/proc/no/such/journal.sqlite", "/sys/kernel/journal.sqlite"):
        with pytest.raises(JournalError, match=r"cannot lock the journal[\s\S]*fix: name a file in a folder"):
            Journal.open(place, IDENTITY)


def test_a_folder_is_made_for_it(tmp_path):
    Journal.open(tmp_path / "runs" / "today" / "journal.sqlite", IDENTITY).close()
    assert recorded(tmp_path / "runs" / "today" / "journal.sqlite") == []


# Damage


@contextmanager
def changed(written, folder, damage):
    copy = snapshot(written[0], folder)
    data = bytearray(copy.read_bytes())
    damage(data)
    copy.write_bytes(data)
    yield copy


@given(st.data())
@settings(max_examples=60)
def test_changed_bytes_are_told_or_change_nothing(tmp_path_factory, written, data):
    def damage(content):
        for _ in range(data.draw(st.integers(1, 3))):
            place = data.draw(st.integers(0, 99) | st.integers(0, len(content) - 1))
            content[place] ^= data.draw(st.integers(1, 255))

    with changed(written, tmp_path_factory.mktemp("flip"), damage) as copy:
        try:
            found = recorded(copy)
            with Journal.open(copy, IDENTITY) as journal:
                journal.append(plain_chunk(range(100, 1000)))
            again = recorded(copy)
        except JournalError as error:
            fix = error.fix
        else:
            fix = "none is needed"
            assert found == written[1]
            assert again == [*found, chunk_bits(plain_chunk(range(100, 1000)))]
        assert fix


@given(st.data())
def test_every_changed_byte_of_a_chunk_is_told(tmp_path_factory, written, data):
    whole = written[0].read_bytes()
    start = whole.rindex(b"EMC3")  # the last chunk that was written lies in one piece at a page's end

    def damage(content):
        content[start + data.draw(st.integers(0, 200))] ^= data.draw(st.integers(1, 255))

    with changed(written, tmp_path_factory.mktemp("chunk"), damage) as copy:
        with pytest.raises(JournalError, match="damaged"):
            recorded(copy)


@given(st.data())
def test_a_file_that_is_cut_is_told(tmp_path_factory, written, data):
    size = written[0].stat().st_size

    def damage(content):
        del content[data.draw(st.integers(0, size - 1)) :]

    with changed(written, tmp_path_factory.mktemp("cut"), damage) as copy:
        with pytest.raises(JournalError, match=r"damaged|no journal|is empty"):
            recorded(copy)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM chunks WHERE number = 2",
        "DELETE FROM chunks WHERE number = 0",
        "UPDATE chunks SET data = 3 WHERE number = 1",
        "UPDATE chunks SET data = CAST(data AS TEXT) WHERE number = 1",
        "UPDATE chunks SET number = number + 1 WHERE number = 4",
        "UPDATE chunks SET (data, digest) = (SELECT data, digest FROM chunks WHERE number = 0) WHERE number = 4",
        "UPDATE identity SET value = 'other' WHERE name = 'plan'",
        "UPDATE identity SET value = x'00ff' WHERE name = 'plan'",
        "DELETE FROM identity",
        "DELETE FROM seal",
        "INSERT INTO result VALUES (0, x'00', x'00')",
        "UPDATE seal SET digest = 'text'",
    ],
)
def test_rows_that_were_changed_are_told(written, tmp_path, statement):
    copy = snapshot(written[0], tmp_path)
    with closing(sqlite3.connect(copy)) as database, database:
        database.execute(statement)
    with pytest.raises(JournalError, match=r"is damaged[\s\S]*fix: delete"):
        recorded(copy)


def test_a_chunk_that_changes_while_it_is_open_is_told(path):
    with Journal.open(path, IDENTITY) as journal:
        journal.append(plain_chunk([0]))
        journal._database.execute("UPDATE chunks SET data = x'00'")
        with pytest.raises(JournalError, match="chunk 0 has changed"):
            list(journal.chunks())


def test_a_log_of_an_earlier_journal_is_not_replayed(path):
    with Journal.open(path, IDENTITY) as journal:
        journal.append(plain_chunk([0]))
        log = path.with_name("journal.sqlite-wal").read_bytes()
    path.unlink()
    path.with_name("journal.sqlite-wal").write_bytes(log)
    assert recorded(path) == []


def test_a_kill_while_it_is_made_leaves_nothing_in_the_way(path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(journal_file.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        Journal.open(path, IDENTITY)
    monkeypatch.undo()
    assert [file.name for file in path.parent.iterdir()] == ["journal.sqlite.lock"]
    assert recorded(path) == []


# A full disk


def test_a_full_database_is_told_and_keeps_what_it_has(path):
    kept = []
    with Journal.open(path, IDENTITY) as journal:
        journal._database.execute("PRAGMA max_page_count = 40")
        with pytest.raises(JournalError, match=r"the disk is full[\s\S]*fix: free some space and run the same again"):
            for k in range(100):
                journal.append(chunk := plain_chunk(range(100 * k, 100 * k + 100)))
                kept.append(chunk_bits(chunk))
        assert 0 < len(kept) < 100
        assert [chunk_bits(chunk) for chunk in journal.chunks()] == kept
        with pytest.raises(JournalError, match="the disk is full"):
            journal.append(plain_chunk(range(10**6, 10**6 + 1000)))
        journal._database.execute("PRAGMA max_page_count = 100000")
        journal.append(plain_chunk(range(10**6, 10**6 + 1000)))
    assert recorded(path)[:-1] == kept


def mounted(folder, size):
    folder.mkdir()
    mount = shutil.which("mount")
    return (
        mount is not None
        and not subprocess.run(
            [mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
    )


def test_a_full_disk_is_told_and_gone_on_from(tmp_path):
    if not mounted(disk := tmp_path / "disk", "400k"):
        pytest.skip("a small disk cannot be mounted here")
    try:
        path, kept = disk / "journal.sqlite", []
        filler = disk / "filler"
        filler.write_bytes(bytes(100_000))
        with pytest.raises(JournalError, match="the disk is full"), Journal.open(path, IDENTITY) as journal:
            for k in range(1000):
                journal.append(chunk := plain_chunk(range(50 * k, 50 * k + 50)))
                kept.append(chunk_bits(chunk))
        assert 0 < len(kept) < 1000
        with pytest.raises(OSError), filler.open("ab", buffering=0) as file:
            while file.write(bytes(512)):
                pass
        with pytest.raises(JournalError, match="the disk is full"):
            Journal.open(disk / "another.sqlite", IDENTITY)
        filler.unlink()
        assert recorded(path) == kept
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_read_only_disk_is_told(written, tmp_path):
    if not mounted(disk := tmp_path / "disk", "1m"):
        pytest.skip("a disk cannot be mounted here")
    try:
        copy = snapshot(written[0], disk)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(JournalError, match=r"cannot lock .*Read-only file system[\s\S]*fix: name a file in"):
            Journal.open(copy, IDENTITY)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EIO, "cannot write .*Input/output error"),
        (errno.EACCES, "cannot write .*Permission denied"),
    ],
)
def test_what_the_system_says_is_told(path, code, said):
    with pytest.raises(JournalError, match=said) as caught, journal_file.told(path, "write"):
        raise OSError(code, os.strerror(code))
    assert caught.value.fix


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (sqlite3.SQLITE_READONLY, "folder that you may write to"),
        (sqlite3.SQLITE_IOERR_FSYNC, "look at the disk"),
        (sqlite3.SQLITE_CORRUPT_VTAB, "damaged"),
        (sqlite3.SQLITE_TOOBIG, "smaller batch_size"),
        (sqlite3.SQLITE_BUSY_RECOVERY, "in use by another program"),
        (sqlite3.SQLITE_MISUSE, "run the same again"),
        (None, "damaged"),
    ],
)
def test_what_sqlite_says_is_told(path, code, said):
    error = sqlite3.OperationalError("it failed")
    if code is not None:
        error.sqlite_errorcode = code
    with pytest.raises(JournalError, match=said) as caught, journal_file.told(path, "write"):
        raise error
    assert caught.value.__cause__ is error


def test_a_chunk_that_is_too_large_is_told(path):
    with Journal.open(path, IDENTITY) as journal:
        journal._database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1000)
        with pytest.raises(JournalError, match=r"cannot write[\s\S]*smaller batch_size"):
            journal.append(plain_chunk(range(1000)))
        journal._database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 10**9)
        journal.append(plain_chunk(range(1000)))


def test_without_filelock_the_extra_is_named(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "filelock", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'evalmode\[evaluate\]'"):
        Journal.open(path, IDENTITY)


def test_left_out_samples_are_answered_for(path):
    left_out = Chunk(
        np.zeros(0, np.int64),
        np.zeros(0, np.int64),
        bad=(BadSampleRecord(id="é", reason="no image"),),
        bad_positions=(7,),
    )
    with Journal.open(path, IDENTITY) as journal:
        journal.append(left_out)
        assert journal.done == 1
    with Journal.open(path, IDENTITY) as journal:
        assert (journal.done, next(journal.chunks()).bad) == (1, left_out.bad)
        assert journal.has(np.array([7, 8])).tolist() == [True, False]
        with pytest.raises(UsageError, match="position 7"):
            journal.append(plain_chunk([6, 7]))


def test_the_path_may_be_text_and_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Journal.open("journal.sqlite", {}) as journal:
        monkeypatch.chdir("/")
        journal.append(plain_chunk([0]))
    assert recorded(Path(tmp_path, "journal.sqlite"), {}) == [chunk_bits(plain_chunk([0]))]
