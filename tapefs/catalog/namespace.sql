-- What files exist: the tables that the tape view and the live catalog have in common. Their
-- indexes stand in namespace_index.sql, so that a checkpoint on tape can do without them.
-- Constraints refuse what no kernel would hand out, because rows also come from tape.

-- One row per file, directory, symlink, fifo, socket or device node.
CREATE TABLE inode (
    -- Inode number; 1 is the root directory. Never reused within a volume.
    -- The bound (2^62) leaves numbers for files to come.
    ino      INTEGER PRIMARY KEY CHECK (ino BETWEEN 1 AND 4611686018427387904),
    -- Type and permission bits as in st_mode; S_IFMT is 61440. The type never changes. It is one
    -- of 1, 2, 4, 6, 8, 10 and 12 (times 4096), the bits of 5462; a list would cost more time.
    mode     INTEGER NOT NULL CHECK (mode BETWEEN 0 AND 65535 AND 5462 >> (mode >> 12) & 1),
    -- Owner.
    uid      INTEGER NOT NULL CHECK (uid BETWEEN 0 AND 4294967295),
    -- Owning group.
    gid      INTEGER NOT NULL CHECK (gid BETWEEN 0 AND 4294967295),
    -- Number of names; for a directory 2 + its subdirectories.
    nlink    INTEGER NOT NULL CHECK (nlink >= 0),
    -- Length of the content in bytes; for a symlink that of its target.
    size     INTEGER NOT NULL CHECK (size >= 0),
    -- Device number of a device node as st_rdev gives it, else 0.
    rdev     INTEGER NOT NULL CHECK (rdev BETWEEN 0 AND 4294967295),
    -- Times in nanoseconds since the epoch, signed.
    atime_ns INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,
    -- Where a symlink points, else NULL.
    target   BLOB CHECK (length(target) BETWEEN 1 AND 4095
                         AND (target IS NOT NULL) = (mode & 61440 = 40960)),
    -- SHA-256 of the whole content as archived; NULL when not known or changed since.
    sha256   BLOB CHECK (length(sha256) = 32),
    -- xxh128 of the whole content, big-endian; NULL when not known or changed since.
    xxh128   BLOB CHECK (length(xxh128) = 16)
) STRICT;

-- One row per name in a directory.
CREATE TABLE dentry (
    -- Position for readdir: grows with creation, stays while the name exists.
    cookie   INTEGER PRIMARY KEY CHECK (cookie >= 1),
    -- The directory that holds the name.
    parent   INTEGER NOT NULL,
    -- One path component, bytes as the kernel gave them: no '/', no NUL, not '.' or '..'; and
    -- not '.tapefs' in the root directory, where tape files have their own members.
    name     BLOB NOT NULL
             CHECK (length(name) BETWEEN 1 AND 255 AND instr(name, x'2f') = 0
                    AND instr(name, x'00') = 0 AND name NOT IN (x'2e', x'2e2e')
                    AND (parent <> 1 OR name <> x'2e746170656673')),
    -- What the name stands for.
    ino      INTEGER NOT NULL
) STRICT;

-- One row per extended attribute.
CREATE TABLE xattr (
    -- The inode that carries it.
    ino      INTEGER NOT NULL,
    -- Full name with its namespace, such as user.comment.
    name     BLOB NOT NULL CHECK (length(name) BETWEEN 1 AND 255 AND instr(name, x'00') = 0),
    -- Its value, at most what Linux allows.
    value    BLOB NOT NULL CHECK (length(value) <= 65536),
    PRIMARY KEY (ino, name)
) STRICT, WITHOUT ROWID;

-- Where a file's bytes stand on tape. Extents of one inode never overlap; what lies between
-- them reads as zeros.
CREATE TABLE extent (
    -- The file.
    ino      INTEGER NOT NULL,
    -- First byte of the run, counted from the start of the file.
    offset   INTEGER NOT NULL CHECK (offset >= 0),
    -- Length of the run in bytes.
    length   INTEGER NOT NULL CHECK (length > 0 AND offset <= 9223372036854775807 - length),
    -- The tape file that holds it.
    sequence INTEGER NOT NULL CHECK (sequence >= 1),
    -- First byte of the run, counted from the first byte of the tape file's first record.
    position INTEGER NOT NULL CHECK (position >= 0),
    PRIMARY KEY (ino, offset)
) STRICT, WITHOUT ROWID;
