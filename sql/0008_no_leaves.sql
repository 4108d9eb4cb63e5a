-- 0008_no_leaves.sql: a file has one digest, and is read whole against it wherever it counts.
--
-- Digests of 64 MiB leaves would say which part of a file is damaged, and let a download check a part
-- alone. Nothing asks either: a damaged update is asked for again whole, and an aggregation reads
-- each of its files from end to end before the first sum.

DROP TABLE upload_leaf;
ALTER TABLE blob DROP COLUMN leaves;
