-- What the live catalog (main) and the tape view (tape) never disagree about without the live catalog
-- knowing that it owes the tape something. Each query gives an inode number of which the sentence
-- above it is true, or no row.

--! knows inode {} otherwise than the tape, and does not owe it
SELECT ino FROM (
    -- Not nlink: it follows from the names, and the tape may not have been told of one that went.
    SELECT ino, mode, uid, gid, size, rdev, mtime_ns, target FROM main.inode
    EXCEPT
    SELECT ino, mode, uid, gid, size, rdev, mtime_ns, target FROM tape.inode
) WHERE ino NOT IN (SELECT ino FROM inode_change) LIMIT 1;

--! lacks inode {} of the tape, and does not owe its removal
SELECT ino FROM tape.inode
WHERE ino NOT IN (SELECT ino FROM main.inode) AND ino NOT IN (SELECT ino FROM inode_change) LIMIT 1;

--! has a name for inode {} that the tape does not have, and does not owe it
SELECT ino FROM (
    SELECT parent, name, ino FROM main.dentry EXCEPT SELECT parent, name, ino FROM tape.dentry
) AS odd LEFT JOIN dentry_change USING (parent, name)
WHERE dentry_change.epoch IS NULL LIMIT 1;

--! lacks a name that the tape has for inode {}, and does not owe its removal
SELECT ino FROM (
    SELECT parent, name, ino FROM tape.dentry EXCEPT SELECT parent, name, ino FROM main.dentry
) AS odd LEFT JOIN dentry_change USING (parent, name)
WHERE dentry_change.epoch IS NULL LIMIT 1;

--! knows the attributes of inode {} otherwise than the tape, and does not owe them
SELECT ino FROM (
    SELECT * FROM (SELECT * FROM main.xattr EXCEPT SELECT * FROM tape.xattr)
    UNION ALL
    SELECT * FROM (SELECT * FROM tape.xattr EXCEPT SELECT * FROM main.xattr)
) WHERE ino NOT IN (SELECT ino FROM inode_change) LIMIT 1;

--! would give inode number {} away again
SELECT max(ino) AS highest FROM main.inode
HAVING highest >= (SELECT value FROM main.setting WHERE name = 'next_ino');

--! has content of inode {} in the spool, which is no regular file of its
SELECT staged.ino FROM staged LEFT JOIN main.inode AS kept USING (ino)
WHERE kept.ino IS NULL OR kept.mode & 61440 <> 32768 LIMIT 1;
