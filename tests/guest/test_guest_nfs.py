"""A mount is exported by the kernel's NFS server; a client's file handles outlive all but the file.

What the client holds on to is an inode number and its generation. The server's kernel forgets both
when it is short of memory, and all of it when the tape is mounted anew; then it asks the filesystem
for the number, and takes it only with the same generation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from guest_machine import missing, run_job
from guest_rig import FUNCTIONS

from tapefs import cli

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.guest


@pytest.fixture(autouse=True)
def what_a_guest_needs() -> None:
    assert missing() == []


NFS = r"""
modprobe -a fuse nfsd nfsv4
export TAPEFS_STATE_DIR=/job/state TAPEFS_RUNTIME_DIR=/job/sockets
M=/job/mnt C=/job/client S=/job/source
mkdir $M $C $S
odd_files $S
mount -t nfsd nfsd /proc/fs/nfsd

served() { # the tape of the drive $1, mounted and exported
    tapefs mount virtual:$1 $M -o idle=3600
    exportfs -o rw,fsid=0,no_root_squash,no_subtree_check,insecure 127.0.0.1:$M
    rpc.nfsd --no-udp --no-nfs-version 3 2
    echo Y >/proc/fs/nfsd/v4_end_grace
}
unserved() {
    rpc.nfsd 0
    exportfs -ua
    tapefs umount $M
}
echo 10 >/proc/fs/nfsd/nfsv4leasetime
echo 10 >/proc/fs/nfsd/nfsv4gracetime
rpc.mountd --no-nfs-version 3
cp $EXCHANGE/[ab].tap /job
served /job/a.tap
mount -t nfs4 -o vers=4.2,actimeo=0,soft,timeo=100 127.0.0.1:/ $C

# All goes through: names, owners, modes, times, links, and content.
rsync -aH $S/ $C/in/
[ -z "$(rsync -aHc --dry-run --itemize-changes --delete $S/ $C/in/ | tee /dev/stderr)" ]
[ -z "$(rsync -aHc --dry-run --itemize-changes --delete $S/ $M/in/ | tee /dev/stderr)" ]
mv "$C/in/d/e/file 1" $C/in/moved
echo more >>$C/in/moved
ln $C/in/moved $C/in/linked
rm $C/in/linked
stat -c %i "$M/in/moved" >/job/number

# The server's kernel is made to forget what the client knows.
exec 5<"$C/in/moved" 6<"$C/in/d/data"
cd $C/in/d/e
for n in 1 2; do
    echo 2 >/proc/sys/vm/drop_caches
    ls .. >/dev/null
    cmp "file 2" "$S/d/e/file 2"
done
tail -c 5 <&5 | grep more
cmp $S/d/data <&6

# The client goes on after the tape was mounted anew, by a host that has never seen it.
unserved
rm -r $TAPEFS_STATE_DIR
served /job/a.tap
cmp "file 3" "$S/d/e/file 3"
[ "$(stat -c %i $C/in/moved)" = "$(cat /job/number)" ]
echo after >$C/in/after
grep after $M/in/after

# What is gone is gone, also when there is something new; and another tape has other files.
exec 7<"$C/in/d/e/file 5"
rm "$M/in/d/e/file 5"
echo new >"$M/in/d/e/new"
fails cmp "file 5" "$S/d/e/file 5"
cd /job
exec 5<&- 6<&- 7<&- 8<"$C/in/d/e"
ls -d /proc/$$/fd/8/
unserved
served /job/b.tap
for n in $(seq 30); do mkdir $M/$n && echo foreign >$M/$n/foreign; done
fails ls /proc/$$/fd/8/
ls /proc/$$/fd/8/ 2>&1 | grep 'Stale file handle'
fails cat $C/in/moved
exec 8<&-
umount -l $C
unserved
"""


def test_nfs_clients_go_on_with_what_they_know(tmp_path: Path) -> None:
    exchange = tmp_path / "exchange"
    exchange.mkdir()
    (exchange / "data").write_bytes(bytes(range(256)) * 12_000)
    for name in ("a", "b"):
        assert cli.main(["format", f"virtual:{exchange}/{name}.tap", "--name", name]) == 0
    outcome = run_job(FUNCTIONS + NFS, exchange, deadline_s=600)
    assert outcome.exit_code == 0, outcome.console
