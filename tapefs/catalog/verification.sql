-- What verifications found. Facts about this cartridge as this host read it: they are in no journal
-- and no checkpoint, and another host starts without them.

-- Values of this host: pass_started_ns (when the last verification of everything began).
CREATE TABLE setting (
    -- Which value.
    name     TEXT PRIMARY KEY,
    -- The value, an integer or a text.
    value    ANY NOT NULL
) STRICT, WITHOUT ROWID;

-- One row per tape file that was read from its first to its last record. It counts as long as the
-- other columns describe the tape file that the tape view knows under this number.
CREATE TABLE verified (
    -- Its number on tape.
    sequence     INTEGER PRIMARY KEY,
    -- Where it stands, how many records it has, when it was written.
    first_block  INTEGER NOT NULL,
    record_count INTEGER NOT NULL,
    written_ns   INTEGER NOT NULL,
    -- When its last record was read, nanoseconds since the epoch.
    verified_ns  INTEGER NOT NULL
) STRICT;

-- What was found damaged and has not been found well since.
CREATE TABLE damage (
    -- The tape file; 0 is the label.
    sequence INTEGER NOT NULL,
    -- First damaged byte, counted from the first byte of the tape file's first record.
    position INTEGER NOT NULL,
    -- How many bytes.
    length   INTEGER NOT NULL,
    -- One of DamageKind.
    kind     TEXT NOT NULL,
    -- What is wrong, for people.
    detail   TEXT NOT NULL,
    -- When it was found, nanoseconds since the epoch.
    found_ns INTEGER NOT NULL,
    PRIMARY KEY (sequence, position, kind)
) STRICT, WITHOUT ROWID;
