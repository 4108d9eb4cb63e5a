-- 0006_invariants.sql: what must hold at any moment. Each row of the view is a violation.
--
-- I1 (acknowledged updates exist) needs the silos' journals, I9 (files without a row) the blob folder;
-- the rest is here, for `photon-server check`, for tests after every fault, and for the night.

CREATE VIEW invariant_broken AS
    -- I2: at most one counted update per seat, and per silo.
    SELECT 'I2' AS rule, round_id || '/' || slot AS subject, 'two counted updates for one seat' AS what
      FROM update WHERE state = 'accepted' GROUP BY round_id, slot HAVING count(*) > 1
    UNION ALL
    SELECT 'I2', round_id || '/' || silo_id, 'two counted updates of one silo'
      FROM update WHERE state = 'accepted' GROUP BY round_id, silo_id HAVING count(*) > 1
    UNION ALL
    -- I3: a checkpoint is its parent plus exactly the closed round's manifest.
    SELECT 'I3', c.run_id || '/' || c.number, 'the checkpoint''s manifest is not its closed round''s'
      FROM checkpoint c
      LEFT JOIN round q ON (q.run_id, q.number, q.state) = (c.run_id, c.number, 'closed')
     WHERE c.number > 0 AND c.manifest IS DISTINCT FROM q.manifest
    UNION ALL
    -- I4: head is the newest checkpoint, numbers are contiguous.
    SELECT 'I4', r.id, 'head is not the newest checkpoint, or numbers are missing'
      FROM run r
      LEFT JOIN (SELECT run_id, max(number) AS top, count(*) AS n FROM checkpoint GROUP BY run_id) c ON c.run_id = r.id
     WHERE (r.head, r.head + 1) IS DISTINCT FROM (c.top, c.n)
    UNION ALL
    -- I5: at most one live round, and it builds on head.
    SELECT 'I5', q.run_id, 'two live rounds, or one that does not build on head'
      FROM round q
      JOIN run r ON r.id = q.run_id
     WHERE q.state IN ('pending', 'open', 'aggregating')
     GROUP BY q.run_id
    HAVING count(*) > 1 OR bool_or(q.base IS DISTINCT FROM r.head)
    UNION ALL
    -- I6: nothing joined or left after sealing, and quorum held.
    SELECT 'I6', q.run_id || '/' || q.number, 'updates changed after the seal, or below quorum'
      FROM round q
      LEFT JOIN manifest_now m ON m.round_id = q.id
     WHERE q.state IN ('aggregating', 'closed')
       AND (q.manifest IS DISTINCT FROM m.m OR coalesce(m.n, 0) < q.quorum)
    UNION ALL
    -- I7: done means one update, none from the future; one open lease exactly while leased.
    SELECT 'I7', t.id, 'done without its update, or the other way round'
      FROM task t
      LEFT JOIN update u ON u.task_id = t.id
     WHERE t.kind = 'train'
     GROUP BY t.id
    HAVING (t.state = 'done') <> (count(u.id) = 1) OR max(u.lease_epoch) > t.lease_epoch
    UNION ALL
    SELECT 'I7', l.task_id || '/' || l.epoch, 'an open lease without a leased task'
      FROM lease l
      JOIN task t ON t.id = l.task_id
     WHERE l.outcome IS NULL AND NOT (t.state = 'leased' AND l.epoch = t.lease_epoch)
    UNION ALL
    SELECT 'I7', t.id, 'leased without an open lease'
      FROM task t
     WHERE t.state = 'leased'
       AND NOT EXISTS (SELECT FROM lease l WHERE l.task_id = t.id AND l.epoch = t.lease_epoch
                                             AND l.silo_id = t.silo_id AND l.outcome IS NULL)
    UNION ALL
    SELECT 'I7', u.id::text, 'an update whose lease is another silo''s, or was not accepted'
      FROM update u
      JOIN lease l ON (l.task_id, l.epoch) = (u.task_id, u.lease_epoch)
     WHERE l.silo_id <> u.silo_id OR l.outcome IS DISTINCT FROM 'accepted'
    UNION ALL
    -- I8: all that is referenced and kept is a live blob.
    SELECT 'I8', encode(d.digest, 'hex'), 'a file in use is not live'
      FROM (SELECT kept_digest AS digest FROM update WHERE state = 'accepted'
            UNION SELECT kept_weights FROM checkpoint
            UNION SELECT kept_state FROM checkpoint) d
      LEFT JOIN blob b ON b.digest = d.digest
     WHERE d.digest IS NOT NULL AND b.state IS DISTINCT FROM 'live'
    UNION ALL
    -- I10: finite, and the run's parameter count.
    SELECT 'I10', c.run_id || '/' || c.number, 'not finite, or of another size than the run'
      FROM checkpoint c
      JOIN run r ON r.id = c.run_id
     WHERE NOT c.finite OR c.params <> r.params
    UNION ALL
    -- I11: exactly one update_accepted event each.
    SELECT 'I11', u.id::text, 'not exactly one event says that it was accepted'
      FROM update u
      LEFT JOIN event e ON e.update_id = u.id AND e.kind = 'update_accepted'
     GROUP BY u.id
    HAVING count(e.id) <> 1;
COMMENT ON VIEW invariant_broken IS 'Empty, always.';
