-- What only the live catalog holds, beside the tables of namespace.sql: facts about this host
-- that never go to tape.

-- Values of this host: volume_uuid (text), epoch, next_ino, confirmed_sequence (last tape file
-- whose contents this catalog has taken note of), segment_written_ns (time stamp of the segment
-- written last, noted before it was begun), clean_shutdown (0 or 1), boot_id (text), and
-- end_reached (1) once the end of the tape was near.
CREATE TABLE setting (
    -- Which value.
    name     TEXT PRIMARY KEY,
    -- The value, an integer or a text.
    value    ANY NOT NULL
) STRICT, WITHOUT ROWID;

-- One row per file that has content in the spool.
CREATE TABLE staged (
    -- The file.
    ino            INTEGER PRIMARY KEY,
    -- Ranges that the spool file holds: pairs of start and end, eight bytes big-endian each.
    resident       BLOB NOT NULL,
    -- Ranges that are not on tape yet, in the same form.
    dirty          BLOB NOT NULL,
    -- Sum of the resident ranges in bytes.
    resident_bytes INTEGER NOT NULL,
    -- Sum of the dirty ranges in bytes.
    dirty_bytes    INTEGER NOT NULL,
    -- When the content was last used, nanoseconds; the oldest clean file is evicted first.
    touched_ns     INTEGER NOT NULL
) STRICT;

-- What the archiver has to write, in the order of inode numbers.
CREATE INDEX staged_dirty ON staged (ino) WHERE dirty_bytes > 0;
-- What may be evicted, oldest use first.
CREATE INDEX staged_clean ON staged (touched_ns) WHERE dirty_bytes = 0;

-- Inodes whose attributes or extended attributes no closed segment tells yet, or which are gone.
CREATE TABLE inode_change (
    -- The inode.
    ino      INTEGER PRIMARY KEY,
    -- Epoch of its latest change.
    epoch    INTEGER NOT NULL
) STRICT;

-- Names that were made, moved or removed and that no closed segment tells yet.
CREATE TABLE dentry_change (
    -- The directory.
    parent   INTEGER NOT NULL,
    -- The name in it; whether it exists now is in dentry.
    name     BLOB NOT NULL,
    -- Epoch of its latest change.
    epoch    INTEGER NOT NULL,
    PRIMARY KEY (parent, name)
) STRICT, WITHOUT ROWID;

-- Inodes without a name that were still open; after a crash they are swept.
CREATE INDEX inode_orphan ON inode (ino) WHERE nlink = 0;
