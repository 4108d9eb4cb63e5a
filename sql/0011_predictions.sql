-- 0011_predictions.sql: what a round should have taken, beside what it took.

ALTER TABLE round
    ADD COLUMN predicted_s     double precision,
    ADD COLUMN predicted_bytes bigint,
    ADD CONSTRAINT round_predicted_whole  CHECK ((predicted_s IS NULL) = (predicted_bytes IS NULL)),
    ADD CONSTRAINT round_predicted_finite CHECK (is_finite(predicted_s) AND predicted_s >= 0 AND predicted_bytes >= 0);
COMMENT ON COLUMN round.predicted_s IS 'The planner''s seconds for it, from the rates of its silos in rounds before; null in a first round.';
