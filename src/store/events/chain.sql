-- Audit events, into a chain of this replica.
SELECT tollgate_write_audit($20, $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)
