-- What a sound tape view never holds. Each query gives a row when the sentence above it is true.

--! has no root directory
SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM inode WHERE ino = 1 AND mode & 61440 = 16384);

--! has names in what is no directory
SELECT 1 FROM dentry LEFT JOIN inode ON inode.ino = dentry.parent
WHERE inode.ino IS NULL OR mode & 61440 <> 16384 LIMIT 1;

--! names an inode that is not there
SELECT 1 FROM dentry LEFT JOIN inode USING (ino)
WHERE inode.ino IS NULL OR inode.ino = 1 LIMIT 1;

--! counts the links of a file wrong
SELECT 1 FROM inode
WHERE mode & 61440 <> 16384
AND (nlink = 0 OR nlink <> (SELECT count(*) FROM dentry WHERE dentry.ino = inode.ino)) LIMIT 1;

--! gives a directory none or several names
SELECT 1 FROM inode
WHERE mode & 61440 = 16384 AND ino <> 1
AND (SELECT count(*) FROM dentry WHERE dentry.ino = inode.ino) <> 1 LIMIT 1;

--! counts the subdirectories of a directory wrong
SELECT 1 FROM inode LEFT JOIN
    (SELECT dentry.parent AS parent, count(*) AS subdirectories
     FROM inode AS child JOIN dentry ON dentry.ino = child.ino
     WHERE child.mode & 61440 = 16384 GROUP BY dentry.parent) AS held
    ON held.parent = inode.ino
WHERE mode & 61440 = 16384 AND nlink <> 2 + coalesce(held.subdirectories, 0) LIMIT 1;

--! has a directory within itself
-- (One that hangs below itself cannot be reached from the root, as each has one name only.)
WITH RECURSIVE reached (ino) AS (
    SELECT 1
    UNION ALL
    SELECT dentry.ino FROM reached JOIN dentry ON dentry.parent = reached.ino
    JOIN inode ON inode.ino = dentry.ino WHERE inode.mode & 61440 = 16384
)
SELECT 1 WHERE (SELECT count(*) FROM reached)
    <> (SELECT count(*) FROM inode WHERE mode & 61440 = 16384);

--! has attributes or extents of an inode that is not there
SELECT 1 WHERE EXISTS (SELECT 1 FROM xattr LEFT JOIN inode USING (ino) WHERE inode.ino IS NULL)
OR EXISTS (SELECT 1 FROM extent LEFT JOIN inode USING (ino) WHERE inode.ino IS NULL);

--! has directory positions that leave none for names to come
SELECT 1 WHERE (SELECT max(cookie) FROM dentry) > 4611686018427387904;

--! has more extended attributes than fit on tape
SELECT 1 FROM xattr GROUP BY ino HAVING sum(length(name) + length(value)) > 524288 LIMIT 1;

--! has bytes beyond the end of a file, or of what is no file
SELECT 1 FROM extent JOIN inode USING (ino)
WHERE mode & 61440 <> 32768 OR offset + length > size LIMIT 1;

--! has extents that overlap
SELECT 1 FROM (
    SELECT ino, offset, lag(ino) OVER held AS before_ino,
           lag(offset + length) OVER held AS before_end
    FROM extent WINDOW held AS (ORDER BY ino, offset)
) WHERE ino = before_ino AND offset < before_end LIMIT 1;

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
