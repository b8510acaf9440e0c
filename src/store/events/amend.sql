-- Amendments, of rows that still say `reserved`. Which of them applied is kept for charge.sql.
SELECT set_config('tollgate.amended', tollgate_amend($1, $2, $3, $4, $5, $6, $7, $8, $9, $10), true)
