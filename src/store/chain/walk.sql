-- The next entries of a chain, those that retention removed among them. An entry that is kept both ways comes first as
-- what is there.
SELECT w.chain_seq, w.at, w.event_id::text, w.prev_hash, w.hash, w.sound, w.faithful, w.removed, w.due
FROM (
    (SELECT e.chain_seq, e.at, e.event_id, e.prev_hash, e.hash,
        coalesce(e.hash = tollgate_audit_link(e.prev_hash, e.chain, e.chain_seq, e.at, e.digest), false) AS sound,
        e.faithful, false AS removed, true AS due
     FROM audit_chain_entries e
     WHERE e.chain = $1 AND e.chain_seq > $2
       -- Through the view no plan stops at the limit: it would read the rest of the chain for each piece of it.
       AND e.chain_seq <= coalesce((
           SELECT max(s.chain_seq) FROM (
               SELECT a.chain_seq FROM audit_events a WHERE a.chain = $1 AND a.chain_seq > $2 ORDER BY a.chain_seq LIMIT $3) s),
           9223372036854775807)
     ORDER BY e.chain_seq LIMIT $3)
    UNION ALL
    (SELECT r.chain_seq, r."timestamp", NULL, r.prev_hash, r.hash,
        coalesce(r.hash = tollgate_audit_link(r.prev_hash, r.chain, r.chain_seq, r."timestamp", r.digest), false),
        true, true, r."timestamp" < now() - interval '2 years'
     FROM audit_removed r WHERE r.chain = $1 AND r.chain_seq > $2 ORDER BY r.chain_seq LIMIT $3)
) w
ORDER BY w.chain_seq, w.removed
LIMIT $3
