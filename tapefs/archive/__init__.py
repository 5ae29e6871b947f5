"""Policy: what happens to a file between the user and the tape, and when.

Who may touch what, and from where. The trio thread is the event loop; "worker" is a thread that
the archiver or a verification starts through `trio.to_thread`, each one at a time.

    what                     in the trio thread               in a worker
    -----------------------  -------------------------------  ------------------------------------
    `TapeDrive`              the job that the lane runs now,  never
                             or the lane, between two jobs
    `Catalog` (live)         everybody, between two awaits    `sync_log`, `fold_log` only
    `TapeView` (archiver's)  the archiver's task, while none  `apply`, `export`, what `Burst` asks
                             of its workers runs
    `TapeView` (readers')    recall, status, verification,    names for a verification's report,
                             the lane's look for its tape     where nothing is mounted
    `Verifications`          verification, the archiver       never
                             (read back), status
    `Snapshot`               opening and closing              `select`, `Burst`; names for a
                                                              verification's plan and report
    spool files              `Contents` writes, punches       `Burst` reads; fsync; a thread of
                                                              `Arrivals` hashes what arrives
    `RangeSet`s, account     `Contents`, the archiver         never
    record buffers           the lane's job gives back the    `RecordPacker` fills; the thread of
                             last of a visit                  the wire gives back the others
    `RecordFeed`             `put`, `wait`: where there is    `offer`; `ready`: the thread of the
                             no room, or nothing              wire
    the record filled last   never                            `RecordPacker`; a thread of the
                                                              segment's builder, which hashes
                                                              while the next one is filled
    a verification's         the lane's job reads into one    `Plan.take` judges the other, and has
    two buffers                                               `TapeFileCheck` to itself until then

Code between two awaits in the trio thread is the critical section: nobody else runs there. Adding
an await inside one of these breaks it, so look twice before doing that:

    Migration._one_segment   the end of an epoch, the snapshot of it and the note that a burst
                             began must be one moment
    Contents.write           admission waits; what is read of the inode after it must be read again
    Confirmation._hand_over  a range becomes clean in `Contents` and an extent in the catalog
                             together, with nothing in between that may fail for another reason
"""
