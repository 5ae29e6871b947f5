-- What stands on the tape; a file of its own, so that an older layout can be brought up to date.

-- One row per tape file after the label.
CREATE TABLE tape_file (
    -- Its number on tape, from 1, without gaps.
    sequence     INTEGER PRIMARY KEY CHECK (sequence >= 1),
    -- 'segment', 'closing' (one without entries that ends a generation), 'checkpoint' or 'torn'.
    kind         TEXT NOT NULL CHECK (kind IN ('segment', 'closing', 'checkpoint', 'torn')),
    -- Address of its first record; records and filemarks count from the beginning of the tape.
    first_block  INTEGER NOT NULL CHECK (first_block BETWEEN 2 AND 9007199254740992),
    -- Number of records, without the filemark.
    record_count INTEGER NOT NULL CHECK (record_count BETWEEN 0 AND 1099511627776),
    -- When it was written, nanoseconds since the epoch; 0 for a torn one.
    written_ns   INTEGER NOT NULL,
    -- CRC-32C of each record as far as known, four bytes big-endian each, from record 0 on. A torn
    -- tape file has them only if its whole members were salvaged.
    crcs         BLOB NOT NULL CHECK (length(crcs) % 4 = 0 AND length(crcs) <= 4 * record_count),
    -- Length of its journal or catalog copy; 0 if torn, or written when nobody noted it.
    index_bytes  INTEGER NOT NULL CHECK (index_bytes >= 0)
) STRICT;

-- The last checkpoint, without walking over the segments after it.
CREATE INDEX tape_file_checkpoint ON tape_file (sequence) WHERE kind = 'checkpoint';
-- The generations, without walking over what lies between them.
CREATE INDEX tape_file_generation ON tape_file (sequence) WHERE kind IN ('checkpoint', 'closing');
