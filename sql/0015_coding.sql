-- 0015_coding.sql: what a codec did to an update, as its silo measured it.

ALTER TABLE upload
    ADD COLUMN codec_error    double precision,
    ADD COLUMN residual_ratio double precision,
    ADD COLUMN fallback_share double precision,
    ADD CONSTRAINT upload_coding_finite CHECK (is_finite(codec_error) AND is_finite(residual_ratio) AND fallback_share BETWEEN 0 AND 1);
ALTER TABLE update
    ADD COLUMN codec_error    double precision,
    ADD COLUMN residual_ratio double precision,
    ADD COLUMN fallback_share double precision,
    ADD CONSTRAINT update_coding_finite CHECK (is_finite(codec_error) AND is_finite(residual_ratio) AND fallback_share BETWEEN 0 AND 1);
COMMENT ON COLUMN update.codec_error IS 'What the codec left out: the norm of u - v over that of u; null where the silo did not say.';
COMMENT ON COLUMN update.residual_ratio IS 'What is owed to later updates: the norm of u - v over that of this round''s delta.';
COMMENT ON COLUMN update.fallback_share IS 'Share of the parameters that went one rung up the ladder.';
