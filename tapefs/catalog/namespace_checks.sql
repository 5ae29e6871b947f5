-- What neither the tape view nor the live catalog ever holds. Each query gives a row when the sentence
-- above it is true. An inode without links has no name, and is nobody's child.

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
AND nlink <> (SELECT count(*) FROM dentry WHERE dentry.ino = inode.ino) LIMIT 1;

--! gives a directory none or several names
SELECT 1 FROM inode
WHERE mode & 61440 = 16384 AND ino <> 1
AND (SELECT count(*) FROM dentry WHERE dentry.ino = inode.ino) <> (nlink > 0) LIMIT 1;

--! counts the subdirectories of a directory wrong
SELECT 1 FROM inode LEFT JOIN
    (SELECT dentry.parent AS parent, count(*) AS subdirectories
     FROM inode AS child JOIN dentry ON dentry.ino = child.ino
     WHERE child.mode & 61440 = 16384 GROUP BY dentry.parent) AS held
    ON held.parent = inode.ino
WHERE mode & 61440 = 16384 AND nlink > 0
AND nlink <> 2 + coalesce(held.subdirectories, 0) LIMIT 1;

--! has a directory within itself
-- (One that hangs below itself cannot be reached from the root, as each has one name only.)
WITH RECURSIVE reached (ino) AS (
    SELECT 1
    UNION ALL
    SELECT dentry.ino FROM reached JOIN dentry ON dentry.parent = reached.ino
    JOIN inode ON inode.ino = dentry.ino WHERE inode.mode & 61440 = 16384
)
SELECT 1 WHERE (SELECT count(*) FROM reached)
    <> (SELECT count(*) FROM inode WHERE mode & 61440 = 16384 AND nlink > 0);

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
-- (Of two that do, the later one starts within the earlier one; no two start at one place.)
SELECT 1 FROM extent AS earlier CROSS JOIN extent AS later ON later.ino = earlier.ino
AND later.offset > earlier.offset AND later.offset < earlier.offset + earlier.length LIMIT 1;
