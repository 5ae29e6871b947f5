
-- Behind tape_file.sql: the rows of layout 1 come back. Nobody noted how long their journals are.
INSERT INTO tape_file SELECT *, 0 FROM older ORDER BY sequence;
DROP TABLE older;
PRAGMA user_version = 2;
COMMIT;
