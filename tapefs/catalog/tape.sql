-- What only the tape view holds, beside the tables of namespace.sql: facts about the volume
-- itself. Everything here follows from the label and the journals on tape, nothing else.

-- Volume-wide values: volume_uuid (text), name (text), record_bytes, created_ns, and next_ino,
-- one more than the highest inode number that any journal ever named.
CREATE TABLE setting (
    -- Which value.
    name     TEXT PRIMARY KEY,
    -- The value, an integer or a text.
    value    ANY NOT NULL
) STRICT, WITHOUT ROWID;

-- One row per tape file after the label.
CREATE TABLE tape_file (
    -- Its number on tape, from 1, without gaps.
    sequence     INTEGER PRIMARY KEY CHECK (sequence >= 1),
    -- 'segment', 'checkpoint' or 'torn'.
    kind         TEXT NOT NULL CHECK (kind IN ('segment', 'checkpoint', 'torn')),
    -- Address of its first record; records and filemarks count from the beginning of the tape.
    first_block  INTEGER NOT NULL CHECK (first_block BETWEEN 2 AND 9007199254740992),
    -- Number of records, without the filemark.
    record_count INTEGER NOT NULL CHECK (record_count BETWEEN 0 AND 1099511627776),
    -- When it was written, nanoseconds since the epoch; 0 for a torn one.
    written_ns   INTEGER NOT NULL,
    -- CRC-32C of each record as far as known, four bytes big-endian each, from record 0 on. A torn
    -- tape file has them only if its whole members were salvaged.
    crcs         BLOB NOT NULL CHECK (length(crcs) % 4 = 0 AND length(crcs) <= 4 * record_count)
) STRICT;

-- The last checkpoint, without walking over the segments after it.
CREATE INDEX tape_file_checkpoint ON tape_file (sequence) WHERE kind = 'checkpoint';
