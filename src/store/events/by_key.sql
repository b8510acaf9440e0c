-- Before amendments: leaves the planner a nested loop over the primary key and nothing else. It has to be told, because
-- it goes by statistics, and to them today's partition is empty for as long as nobody has looked.
SET LOCAL enable_seqscan = off;
SET LOCAL enable_bitmapscan = off;
SET LOCAL enable_hashjoin = off;
SET LOCAL enable_mergejoin = off;
SET LOCAL enable_material = off;
