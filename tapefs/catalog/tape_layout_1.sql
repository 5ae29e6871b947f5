-- Before tape_file.sql: what a tape view of layout 1 has in its place steps aside.
BEGIN IMMEDIATE;
DROP INDEX tape_file_checkpoint;
ALTER TABLE tape_file RENAME TO older;

