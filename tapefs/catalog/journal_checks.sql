-- What a journal must not leave behind. Each query gives the number of an inode for which the
-- sentence above it is true, or no row. CROSS JOIN keeps the order of the tables: what a journal
-- touches is little, and without statistics SQLite would rather go through all inodes.

--! names inode {} without describing it
SELECT touched.ino FROM touched LEFT JOIN inode USING (ino)
WHERE inode.ino IS NULL AND EXISTS (SELECT 1 FROM dentry WHERE dentry.ino = touched.ino)
LIMIT 1;

--! puts a name into {}, which is not a directory
SELECT holder.parent FROM (SELECT DISTINCT parent FROM moved WHERE delta > 0) AS holder
LEFT JOIN inode ON inode.ino = holder.parent AND inode.mode & 61440 = 16384
WHERE inode.ino IS NULL AND EXISTS (SELECT 1 FROM dentry WHERE dentry.parent = holder.parent)
LIMIT 1;

--! gives directory {} more than one name
SELECT inode.ino FROM touched CROSS JOIN inode USING (ino)
WHERE inode.mode & 61440 = 16384
AND (SELECT count(*) FROM dentry WHERE dentry.ino = inode.ino)
    > CASE inode.ino WHEN 1 THEN 0 ELSE 1 END
LIMIT 1;

--! gives inode {} bytes beyond its end
-- (Extents do not overlap, so that the last one tells.)
SELECT touched.ino FROM touched CROSS JOIN inode USING (ino)
WHERE nlink > 0 AND (SELECT offset + length FROM extent WHERE extent.ino = touched.ino
       ORDER BY offset DESC LIMIT 1) > CASE mode & 61440 WHEN 32768 THEN size ELSE 0 END
LIMIT 1;

--! removes directory {} but leaves names in it
SELECT touched.ino FROM touched
WHERE touched.ino <> 1 AND NOT EXISTS (SELECT 1 FROM dentry WHERE dentry.ino = touched.ino)
AND EXISTS (SELECT 1 FROM dentry WHERE dentry.parent = touched.ino)
LIMIT 1;
