# SPDX-License-Identifier: Apache-2.0
"""Wegman-Carter tags and the pool of one-time key behind them."""

import os
import shutil
import stat

import pytest

from keyrail.authentication import (
    PAD_BYTES,
    RESERVE,
    Authenticator,
    Counters,
    ForgeryError,
    PhaseTranscript,
    Pool,
    PoolDry,
    PoolError,
    PoolRestored,
    forgery_bound,
    provision,
)
from keyrail.contract import Role
from keyrail.keystore import Keystore
from keyrail.randomness import TestRandom

P1305 = (1 << 130) - 5
SESSION = bytes(range(16))


@pytest.fixture
def paths(tmp_path):
    paths = {Role.SENDER: tmp_path / "alice.pool", Role.RECEIVER: tmp_path / "bob.pool"}
    provision(paths, TestRandom(1, "pool"), 40)
    return paths


def transcript(*messages):
    made = PhaseTranscript()
    for author, data in messages:
        made.add(author, data)
    return made


SPOKEN = transcript((Role.SENDER, b"open"), (Role.RECEIVER, b"close" * 100))


def formula(r: bytes, pad: bytes, text: bytes) -> bytes:
    """The tag as the module's docstring gives it, in plain integers."""
    clamped = int.from_bytes(r, "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    value = 0
    for start in range(0, len(text), 16):
        value = (value + int.from_bytes(text[start : start + 16] + b"\x01", "little")) * clamped
    value = value % P1305 + int.from_bytes(pad, "little")
    return (value & ((1 << 128) - 1)).to_bytes(16, "little")


def test_tags_are_the_stated_polynomial_under_a_pad_of_their_own(paths):
    pool = Pool(paths[Role.SENDER], Role.SENDER)
    pads = [row[0] for row in pool._db.execute("SELECT pad FROM pads WHERE role = 1")]
    author = Authenticator(pool)
    for count in range(3):
        index, tag = author.tag(SESSION, 7, 2, SPOKEN)
        assert index == count
        head = b"keyrail tag 1" + b"\x10" + SESSION
        head += b"".join(n.to_bytes(8, "little") for n in (7, 2, int(Role.SENDER), index))
        text = head + b"".join(SPOKEN.parts())
        assert tag == formula(pool.polynomial_key(Role.SENDER), pads[count], text)
    pool.close()


def test_a_tag_fits_its_transcript_and_no_other(paths):
    alice, bob = Pool(paths[Role.SENDER], Role.SENDER), Pool(paths[Role.RECEIVER], Role.RECEIVER)
    author, reader = Authenticator(alice), Authenticator(bob)
    index, tag = author.tag(SESSION, 1, 1, SPOKEN)
    assert reader.check(SESSION, 1, 1, SPOKEN, index, tag) == forgery_bound(
        13 + 17 + 32 + sum(map(len, SPOKEN.parts()))
    )
    others = [
        (SESSION, 1, 1, transcript((Role.SENDER, b"open"), (Role.RECEIVER, b"close" * 99 + b"x"))),
        # Who said what, and where one message ends, are part of it.
        (SESSION, 1, 1, transcript((Role.RECEIVER, b"open"), (Role.SENDER, b"close" * 100))),
        (SESSION, 1, 1, transcript((Role.SENDER, b"ope"), (Role.RECEIVER, b"n" + b"close" * 100))),
        (SESSION, 2, 1, SPOKEN),
        (SESSION, 1, 2, SPOKEN),
        (bytes(16), 1, 1, SPOKEN),
    ]
    for session, block, phase, said in others:
        index, tag = author.tag(SESSION, 1, 1, SPOKEN)
        with pytest.raises(ForgeryError, match="does not fit"):
            reader.check(session, block, phase, said, index, tag)
        # One attempt an index: the right transcript comes too late.
        with pytest.raises(ForgeryError, match="replay"):
            reader.check(SESSION, 1, 1, SPOKEN, index, tag)
    # Its own tags come back to nobody: each direction has its own key.
    index, tag = author.tag(SESSION, 1, 1, SPOKEN)
    with pytest.raises(ForgeryError):
        Authenticator(alice).check(SESSION, 1, 1, SPOKEN, index, tag)
    alice.close(), bob.close()


def test_the_index_is_on_disk_and_the_pad_gone_before_the_tag(paths, monkeypatch):
    pool = Pool(paths[Role.SENDER], Role.SENDER)
    pad = pool._db.execute("SELECT pad FROM pads WHERE role = 1 AND number = 0").fetchone()[0]
    assert pad in paths[Role.SENDER].read_bytes()
    seen = []

    class Stops(Exception):
        pass

    def look(*arguments):
        # What lies on disk at the moment in which the pad is about to be used.
        seen.append(pad in paths[Role.SENDER].read_bytes())
        raise Stops

    monkeypatch.setattr("keyrail.authentication.Poly1305", look)
    with pytest.raises(Stops):
        Authenticator(pool).tag(SESSION, 1, 1, SPOKEN)
    pool.close()
    assert seen == [False]
    again = Pool(paths[Role.SENDER], Role.SENDER)
    assert again.counters[Role.SENDER] == Counters(1, 40)
    again.close()


def test_a_dry_pool_says_so(paths):
    pool = Pool(paths[Role.SENDER], Role.SENDER)
    pool.require({Role.SENDER: RESERVE, Role.RECEIVER: RESERVE})
    with pytest.raises(PoolDry, match="40 pads of the sender's tags are left, a block needs 41"):
        pool.require({Role.SENDER: 41})
    for _ in range(40):
        pool.use(Role.SENDER)
    with pytest.raises(PoolDry, match="provision the link anew"):
        pool.use(Role.SENDER)
    with pytest.raises(PoolDry):
        pool.use(Role.RECEIVER, 40)
    # An index from far ahead would waste all pads before it.
    with pytest.raises(ForgeryError, match="index 90 of the receiver's pads where 0 is due"):
        pool.use(Role.RECEIVER, 90)
    assert pool.left(Role.RECEIVER) == 40
    pool.close()


def test_new_key_goes_behind_what_is_left(paths):
    pool = Pool(paths[Role.SENDER], Role.SENDER)
    for _ in range(10):
        pool.use(Role.SENDER)
    pool.use(Role.RECEIVER, 3)
    assert pool.refill_wanted(10**6, 0.05) == {Role.SENDER: 10, Role.RECEIVER: 4}
    # At most the share: 8 pads of 128 bits out of 20,480, where they are missed most.
    assert pool.refill_wanted(20_480, 0.05) == {Role.SENDER: 7, Role.RECEIVER: 1}
    assert sum(pool.refill_wanted(2_559, 0.05).values()) == 0
    pool.refill({Role.SENDER: b"S" * 160, Role.RECEIVER: b""})
    pool.close()
    pool = Pool(paths[Role.SENDER], Role.SENDER)
    assert pool.counters == {Role.SENDER: Counters(10, 50), Role.RECEIVER: Counters(4, 40)}
    for _ in range(30):
        pool.use(Role.SENDER)
    assert pool.use(Role.SENDER) == (40, b"S" * PAD_BYTES)
    pool.close()


def test_files_are_private_and_never_overwritten(paths, tmp_path):
    for path in paths.values():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = paths[Role.SENDER].read_bytes()
    with pytest.raises(PoolError, match="exists already and is not overwritten"):
        provision(paths, TestRandom(2, "pool"))
    assert paths[Role.SENDER].read_bytes() == before
    # Half a pair is taken back.
    third = {Role.SENDER: tmp_path / "new.pool", Role.RECEIVER: paths[Role.RECEIVER]}
    with pytest.raises(PoolError, match="exists already"):
        provision(third, TestRandom(2, "pool"))
    assert not (tmp_path / "new.pool").exists()
    with pytest.raises(PoolError, match="allowed is 32 to"):
        provision(third, TestRandom(2, "pool"), 3)
    os.chmod(paths[Role.SENDER], 0o640)
    with pytest.raises(PoolError, match="mode 0640"):
        Pool(paths[Role.SENDER], Role.SENDER)


def test_what_is_no_pool_of_this_station_is_refused(paths, tmp_path):
    with pytest.raises(PoolError, match="the other station's pool"):
        Pool(paths[Role.SENDER], Role.RECEIVER)
    with pytest.raises(PoolError, match="no pool"):
        Pool(tmp_path / "none.pool", Role.SENDER)
    damaged = tmp_path / "damaged.pool"
    damaged.write_bytes(b"nonsense" * 1000)
    damaged.chmod(0o600)
    with pytest.raises(PoolError, match="damaged or no pool"):
        Pool(damaged, Role.SENDER)
    opened = Pool(paths[Role.SENDER], Role.SENDER)
    with pytest.raises(PoolError, match="in use by another process"):
        Pool(paths[Role.SENDER], Role.SENDER)
    opened.close()


def test_a_copy_and_a_backup_are_refused(paths, tmp_path):
    keystore = Keystore(tmp_path / "alice.keys")
    path = paths[Role.SENDER]
    Pool(path, Role.SENDER, keystore).close()
    backup = path.read_bytes()
    pool = Pool(path, Role.SENDER, keystore)
    pool.use(Role.SENDER)
    pool.close()
    # Another file of the same content.
    copy = tmp_path / "copy.pool"
    shutil.copy(path, copy)
    with pytest.raises(PoolRestored, match="another inode"):
        Pool(copy, Role.SENDER, keystore)
    # The backup written over the same file: the keystore remembers.
    path.write_bytes(backup)
    with pytest.raises(PoolRestored, match="restored from a backup"):
        Pool(path, Role.SENDER, keystore)
    keystore.close()


def test_the_other_station_finds_a_restored_pool(paths):
    alice, bob = Pool(paths[Role.SENDER], Role.SENDER), Pool(paths[Role.RECEIVER], Role.RECEIVER)
    for _ in range(5):
        alice.use(Role.SENDER)
    bob.use(Role.SENDER, 2)
    bob.agree(alice.counters)
    # What the sender lost in a crash the receiver gives up too, and no pad serves twice.
    assert bob.counters[Role.SENDER] == Counters(5, 40)
    older = {**alice.counters, Role.SENDER: Counters(4, 40)}
    with pytest.raises(PoolRestored, match="the other station's pool is at index 4"):
        bob.agree(older)
    seen_more = {**bob.counters, Role.SENDER: Counters(9, 40)}
    with pytest.raises(PoolRestored, match="the other station has seen 9"):
        alice.agree(seen_more)
    # A refill that only one of them has is given up.
    alice.refill({Role.RECEIVER: bytes(32)})
    alice.agree(bob.counters)
    assert alice.counters == bob.counters
    alice.close(), bob.close()


def test_nothing_secret_in_text(paths):
    pool = Pool(paths[Role.SENDER], Role.SENDER)
    text = repr(pool) + repr(Authenticator(pool)) + repr(pool.counters)
    assert pool.live_key.hex() not in text
    assert repr(pool.polynomial_key(Role.SENDER)) not in text
    pool.close()


def test_a_refill_that_fails_leaves_the_pool_as_it_was(paths):
    pool = Pool(paths[Role.SENDER], Role.SENDER)
    before = dict(pool.counters)
    with pytest.raises(ValueError, match="no whole number of pads"):
        pool.refill({Role.SENDER: bytes(PAD_BYTES), Role.RECEIVER: bytes(PAD_BYTES - 1)})
    assert dict(pool.counters) == before
    # Nothing of it stays behind in the file, and the pool goes on.
    pool.refill({Role.SENDER: bytes(PAD_BYTES)})
    assert pool.counters[Role.SENDER].end == before[Role.SENDER].end + 1
    pool.close()
    again = Pool(paths[Role.SENDER], Role.SENDER)
    assert again.counters[Role.RECEIVER] == before[Role.RECEIVER]
    again.close()
