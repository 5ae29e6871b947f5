-- What one recall into a directory is about to do, in that directory, and what earlier ones did.

-- One row per name that is to be there. A directory stands before what is in it.
CREATE TABLE item (
    id        INTEGER PRIMARY KEY,
    -- Where it goes, below the directory.
    path      BLOB NOT NULL UNIQUE,
    -- Where it is on its volume.
    origin    BLOB NOT NULL,
    -- What it is, as in namespace.sql.
    ino       INTEGER NOT NULL,
    mode      INTEGER NOT NULL,
    uid       INTEGER NOT NULL,
    gid       INTEGER NOT NULL,
    nlink     INTEGER NOT NULL,
    size      INTEGER NOT NULL,
    rdev      INTEGER NOT NULL,
    atime_ns  INTEGER NOT NULL,
    mtime_ns  INTEGER NOT NULL,
    ctime_ns  INTEGER NOT NULL,
    target    BLOB,
    sha256    BLOB,
    xxh128    BLOB,
    -- The block of the tape that its first byte stands in, and what sorts those in one block.
    place     INTEGER NOT NULL,
    position  INTEGER NOT NULL,
    -- The item that brings the content, where another name of the same file does; else NULL.
    first     INTEGER,
    -- 1: it is at its place, and proven; 2: it is not to be there after all.
    state     INTEGER NOT NULL DEFAULT 0
) STRICT;

-- Names of one file.
CREATE INDEX item_ino ON item (ino) WHERE nlink > 1;

-- What was copied and proven of files whose hash no catalog knows.
CREATE TABLE proof (
    -- The volume's UUID, and the file on it.
    volume    TEXT NOT NULL,
    ino       INTEGER NOT NULL,
    -- What it was like when it was copied.
    size      INTEGER NOT NULL,
    mtime_ns  INTEGER NOT NULL,
    -- Of what was copied.
    sha256    BLOB NOT NULL,
    PRIMARY KEY (volume, ino)
) STRICT, WITHOUT ROWID;
