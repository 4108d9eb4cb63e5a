-- 0016_steps.sql: a checkpoint may come with a step from the one before, for silos that have that.

ALTER TABLE checkpoint
    ADD COLUMN step          bytea,
    ADD COLUMN step_bytes    bigint,
    ADD COLUMN step_codec    text,
    ADD COLUMN step_error    double precision,
    ADD COLUMN step_residual double precision,
    ADD COLUMN step_fallback double precision,
    ADD COLUMN step_kept     boolean NOT NULL DEFAULT true,
    ADD COLUMN kept_step     bytea   GENERATED ALWAYS AS (CASE WHEN step_kept THEN step END) STORED,
    ADD CONSTRAINT checkpoint_step_whole  CHECK (num_nulls(step, step_bytes, step_codec, step_error, step_residual, step_fallback) IN (0, 6)),
    ADD CONSTRAINT checkpoint_step_sha256 CHECK (octet_length(step) = 32),
    ADD CONSTRAINT checkpoint_step_leads  CHECK (step IS NULL OR (number > 0 AND outer_state IS NOT NULL)),
    ADD CONSTRAINT checkpoint_step_size   CHECK (step_bytes > 0),
    ADD CONSTRAINT checkpoint_step_sound  CHECK (is_finite(step_error) AND step_error >= 0 AND is_finite(step_residual)
                                                 AND step_residual >= 0 AND step_fallback BETWEEN 0 AND 1.000001),
    ADD CONSTRAINT checkpoint_step_fk     FOREIGN KEY (kept_step) REFERENCES blob (digest);
COMMENT ON COLUMN checkpoint.step          IS 'Digest of the file that leads here from the weights before; null where silos take the weights whole.';
COMMENT ON COLUMN checkpoint.step_codec    IS 'The rung it was coded on: the run''s, or one up under a guard.';
COMMENT ON COLUMN checkpoint.step_error    IS 'What the rung left out, as a share of what was to be sent.';
COMMENT ON COLUMN checkpoint.step_residual IS 'The same as a multiple of what the outer step moved: it goes with later steps.';
COMMENT ON COLUMN checkpoint.step_fallback IS 'Share of the parameters whose tensors went one rung up.';
COMMENT ON COLUMN checkpoint.step_kept     IS 'False: a snapshot is fewer bytes than the steps from there, and the file may be gone.';
CREATE INDEX checkpoint_by_step ON checkpoint (kept_step) WHERE kept_step IS NOT NULL;

CREATE TRIGGER checkpoint_step_immutable BEFORE UPDATE ON checkpoint FOR EACH ROW
    WHEN ((OLD.step, OLD.step_bytes, OLD.step_codec, OLD.step_error, OLD.step_residual, OLD.step_fallback)
          IS DISTINCT FROM (NEW.step, NEW.step_bytes, NEW.step_codec, NEW.step_error, NEW.step_residual, NEW.step_fallback)
          OR (NEW.step_kept AND NOT OLD.step_kept))
    EXECUTE FUNCTION refuse('a checkpoint never changes');
CREATE TRIGGER checkpoint_step_live BEFORE INSERT ON checkpoint FOR EACH ROW EXECUTE FUNCTION blob_must_live('step');

ALTER VIEW invariant_broken RENAME TO invariant_broken_but_steps;
CREATE VIEW invariant_broken AS
    SELECT rule, subject, what FROM invariant_broken_but_steps
    UNION ALL
    -- I8, of steps.
    SELECT 'I8', encode(c.kept_step, 'hex'), 'a step in use is not live'
      FROM checkpoint c
      LEFT JOIN blob b ON b.digest = c.kept_step
     WHERE c.kept_step IS NOT NULL AND b.state IS DISTINCT FROM 'live'
    UNION ALL
    -- I12: with coded steps down, each checkpoint but the first and the last comes with one.
    SELECT 'I12', c.run_id || '/' || c.number, 'a step is missing, or there where none belongs'
      FROM checkpoint c
      JOIN run r ON r.id = c.run_id
     WHERE (c.step IS NOT NULL) <> (coalesce(r.spec -> 'codec' ->> 'down', 'f32') <> 'f32' AND c.number > 0
                                    AND c.number < (r.spec -> 'federation' ->> 'rounds')::integer);
COMMENT ON VIEW invariant_broken IS 'Empty, always.';
