-- Indexes over the tables of namespace.sql. A rowid (here: the cookie) is the last column of
-- every index, so dentry_parent also gives a directory's names in the order of their cookies.

-- Look a name up; a directory has each name once.
CREATE UNIQUE INDEX dentry_name ON dentry (parent, name);
-- List a directory from a cookie on.
CREATE INDEX dentry_parent ON dentry (parent);
-- The names of an inode, to count its links and to find its paths.
CREATE INDEX dentry_ino ON dentry (ino);
