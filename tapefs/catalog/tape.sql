-- What only the tape view holds, beside the tables of namespace.sql: facts about the volume
-- itself; with tape_file.sql. It all follows from the label and the journals on tape, nothing else.

-- Volume-wide values: volume_uuid (text), name (text), record_bytes, created_ns, and next_ino,
-- one more than the highest inode number that any journal ever named.
CREATE TABLE setting (
    -- Which value.
    name     TEXT PRIMARY KEY,
    -- The value, an integer or a text.
    value    ANY NOT NULL
) STRICT, WITHOUT ROWID;
