"""Linux's own usb-storage and st drive the emulated drive, as they would a real one.

Nobody here wrote them: what mt, tar and dd find wrong with the drive is wrong with it.
"""

from __future__ import annotations

import random
import re
import shutil
from typing import TYPE_CHECKING

import pytest
from guest_machine import missing
from guest_rig import new_cartridge, tape_files, with_drive

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.guest

MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def what_a_guest_needs() -> None:
    assert missing() == []


def blocks(data: bytes, size: int, count: int | None = None) -> list[bytes]:
    """What `dd bs=SIZE [count=COUNT]` makes of `data`."""
    if count is not None:
        data = data[: size * count]
    return [data[start : start + size] for start in range(0, len(data), size)]


KERNEL = r"""
mt -f $T status | tee status0
grep -q 'BOT ONLINE' status0
sg_inq /dev/sg0 | grep 'Product identification: Ultrium 5-SCSI'
sg_inq -p 0x80 /dev/sg0 | grep 'Unit serial number: VT'
sg_logs -a /dev/sg0 | grep -i 'tape capacity'
sg_logs -p 0x31 /dev/sg0 | grep 'Main partition remaining capacity (in MiB): 60$'
mt -f $T setblk 0

# A blank tape has nothing to read.
fails dd if=$T of=/dev/null bs=64k

dd if=data of=$T bs=64k
dd if=data of=$T bs=10k count=7
dd if=data of=$T bs=1M count=2
dd if=data of=$T bs=1 count=3
dd if=data of=$T bs=1001 count=5
tar -b 128 -cf $T tree
dd if=data of=$T bs=512k
mt -f $T weof 2
mt -f $T status | tee status1
grep -q 'File number=9, block number=0' status1

# Read back, also with larger blocks than were written.
mt -f $T rewind
dd if=$T of=r0 bs=64k
cmp data r0
dd if=$T bs=1M of=r1
cmp <(head -c 71680 data) r1
dd if=$T bs=1M of=r2
cmp <(head -c 2M data) r2
dd if=$T bs=4k of=r3
cmp <(head -c 3 data) r3
dd if=$T bs=1001 of=r4
cmp <(head -c 5005 data) r4
mkdir restored
tar -b 128 -C restored -xpf $T
diff -r tree restored/tree
# GNU tar stops at its end of archive; the filemark is still ahead.
mt -f $T fsf 1
dd if=$T bs=512k of=r6
cmp data r6
# Two files with nothing in them, then the end of data.
for n in 7 8 end; do
    dd if=$T bs=512k of=r$n
    [ ! -s r$n ]
done
mt -f $T status | tee status_end
grep -q EOD status_end

# There and back.
mt -f $T rewind
mt -f $T fsf 1
mt -f $T tell | tee tell1
mt -f $T fsr 3
dd if=$T bs=10k count=1 of=r9
cmp <(dd if=data bs=10k skip=3 count=1) r9
mt -f $T bsr 2
dd if=$T bs=10k count=1 of=r10
cmp <(dd if=data bs=10k skip=2 count=1) r10
mt -f $T bsfm 1
mt -f $T fsr 1
dd if=$T bs=10k count=1 of=r11
cmp <(dd if=data bs=10k skip=1 count=1) r11
mt -f $T eod
mt -f $T status | tee status2
grep -q 'File number=9' status2
mt -f $T bsf 3
mt -f $T fsf 1
dd if=$T bs=512k of=r12
[ ! -s r12 ]
mt -f $T rewind
mt -f $T seek 47
dd if=$T bs=10k count=1 of=r13
cmp <(head -c 10k data) r13
# Before the beginning, and over a filemark.
mt -f $T rewind
fails mt -f $T bsr 1
mt -f $T rewind
fails mt -f $T fsr 100
mt -f $T status | grep 'File number=1, block number=0'

# A record that does not fit is an error, and the next one is read.
fails dd if=$T of=/dev/null bs=512 count=1
dd if=$T bs=10k count=1 of=r14
cmp <(dd if=data bs=10k skip=1 count=1) r14

# Out and in again.
mt -f $T offline
mt -f $T status | tee status_out
grep -q DR_OPEN status_out
mt -f $T load
mt -f $T status | grep 'BOT ONLINE'
dd if=$T bs=64k count=1 of=r15
cmp <(head -c 64k data) r15
"""


def test_mt_tar_and_dd_through_the_kernels_own_drivers(tmp_path: Path) -> None:
    exchange = tmp_path / "exchange"
    exchange.mkdir()
    data = random.Random(3).randbytes(3_000_000)
    (exchange / "data").write_bytes(data)
    tree = exchange / "tree"
    for number in range(40):
        path = tree / f"d{number % 7}" / f"file {number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data[number * 1000 : number * 3000])
    cartridge = new_cartridge(tmp_path / "a.tap", 64 * MIB)
    with_drive(cartridge, KERNEL, exchange).check()
    files = tape_files(cartridge)
    assert files[0] == blocks(data, 65536)
    assert len(files[0][-1]) == 50_880
    assert files[1] == blocks(data, 10240, 7)
    assert files[2] == blocks(data, MIB, 2)
    assert files[3] == [data[:1], data[1:2], data[2:3]]
    assert files[4] == blocks(data, 1001, 5)
    assert {len(record) for record in files[5]} == {65536}
    assert files[6] == blocks(data, 524288)
    assert files[7:] == [[], [], []]
    shutil.rmtree(exchange)


FIXED = r"""
mt -f $T setblk 512
dd if=data of=$T bs=8k
mt -f $T rewind
dd if=$T bs=64k of=r0
cmp data r0
mt -f $T rewind
# A read of many blocks ends at the filemark.
dd if=$T bs=512k of=r1
cmp data r1
# Writing in the middle cuts off what follows.
mt -f $T rewind
mt -f $T fsr 100
dd if=data of=$T bs=5120 count=1
mt -f $T rewind
dd if=$T bs=64k of=r2
cmp <(head -c 51200 data; head -c 5120 data) r2
# st says it once, then it is an error to go on.
dd if=$T bs=64k of=r3
[ ! -s r3 ]
fails dd if=$T bs=64k of=r3
"""


def test_fixed_blocks_through_the_kernels_own_drivers(tmp_path: Path) -> None:
    exchange = tmp_path / "exchange"
    exchange.mkdir()
    data = random.Random(4).randbytes(512 * 700)
    (exchange / "data").write_bytes(data)
    cartridge = new_cartridge(tmp_path / "a.tap", 64 * MIB, "ait1")
    with_drive(cartridge, FIXED, exchange).check()
    assert tape_files(cartridge) == [blocks(data[:51200] + data[:5120], 512), []]


FULL = r"""
mt -f $T setblk 0
fails dd if=/dev/urandom of=$T bs=64k 2>first
cat first
grep -q 'No space left on device' first
sg_logs -p 0x31 /dev/sg0 | grep 'Main partition remaining capacity (in MiB): 0$'
# That was early warning; st lets a trailer through, and from then on every other write.
dd if=data of=$T bs=128k count=1
for n in $(seq 40); do dd if=data of=$T bs=64k count=1 2>>second || true; done
# Until the tape is really full.
fails dd if=data of=$T bs=64k count=1
fails dd if=data of=$T bs=64k count=1
mt -f $T rewind
dd if=$T bs=64k of=/dev/null 2>read
cat read
dd if=$T bs=128k of=trailer
cmp <(head -c 128k data) trailer
"""


def test_the_end_of_the_tape_through_the_kernels_own_drivers(tmp_path: Path) -> None:
    exchange = tmp_path / "exchange"
    exchange.mkdir()
    data = random.Random(5).randbytes(256 * 1024)
    (exchange / "data").write_bytes(data)
    cartridge = new_cartridge(tmp_path / "a.tap", 16 * MIB)
    with_drive(cartridge, FULL, exchange).check()
    before, trailer, *rest = tape_files(cartridge)
    accepted = re.compile(r"^(\d+)\+0 records out", re.MULTILINE)
    written, read = ((exchange / name).read_text() for name in ("first", "read"))
    assert accepted.findall(written) == accepted.findall(read) == [str(len(before))]
    assert trailer == [data[: 128 * 1024]]
    # Every write that did not fail is there, and nothing else is.
    counts = accepted.findall((exchange / "second").read_text())
    assert [record for file in rest for record in file] == [data[:65536]] * counts.count("1")
    assert counts.count("1") > 2
    assert counts[-1] == "0"
