-- What a sound tape view never holds, beside what namespace_checks.sql says. Each query gives a row
-- when the sentence above it is true.

--! has an inode without a name
SELECT 1 FROM inode WHERE nlink = 0 LIMIT 1;

--! has extents outside of any tape file
SELECT 1 FROM extent LEFT JOIN tape_file USING (sequence)
CROSS JOIN (SELECT value AS record_bytes FROM setting WHERE name = 'record_bytes')
CROSS JOIN (SELECT coalesce(max(value), 0) AS block_bytes FROM setting WHERE name = 'block_bytes')
WHERE tape_file.sequence IS NULL
OR position + length > record_count
   * CASE WHEN kind = 'torn' AND block_bytes THEN block_bytes ELSE record_bytes END LIMIT 1;

--! has tape files that do not follow each other
SELECT 1 FROM (
    SELECT sequence, first_block, lag(sequence, 1, 0) OVER held + 1 AS next_sequence,
           lag(first_block + record_count
               * CASE WHEN kind = 'torn' THEN 1 ELSE blocks_per_record END + 1,
               1, label_blocks + 1) OVER held AS next_block
    FROM tape_file
    CROSS JOIN (
        SELECT CASE WHEN block_bytes THEN record_bytes / block_bytes ELSE 1 END AS blocks_per_record,
               CASE WHEN block_bytes THEN 10240 / block_bytes ELSE 1 END AS label_blocks
        FROM (SELECT value AS record_bytes FROM setting WHERE name = 'record_bytes')
        CROSS JOIN (
            SELECT coalesce(max(value), 0) AS block_bytes FROM setting WHERE name = 'block_bytes'
        )
    )
    WINDOW held AS (ORDER BY sequence)
) WHERE sequence <> next_sequence OR first_block <> next_block LIMIT 1;

--! has inode numbers that it would give away again
SELECT 1 WHERE (SELECT max(ino) FROM inode)
    >= (SELECT value FROM setting WHERE name = 'next_ino');
