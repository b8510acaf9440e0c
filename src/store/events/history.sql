-- What was before, for the audit events that are in a history: once all of the batch are there.
SELECT tollgate_tell_old_values($1, $2)
