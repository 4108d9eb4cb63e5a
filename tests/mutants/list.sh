# The bugs that the tests must see: mutant NAME FILE SED TEST [API-TEST]. Read by tests/mutants/run.sh.
# shellcheck shell=sh disable=SC2016 # a dollar here is SQL's, or the end of a line

# ---- the sum ----
mutant 'a delta is added, not subtracted' common/outer.c \
    's/x\[i\] -= lr \* delta\[i\];/x[i] += lr * delta[i];/' tests/unit/test_outer
mutant 'nesterov does not look ahead' common/outer.c \
    's/(delta\[i\] + momentum \* m\[i\])/(m[i])/' tests/unit/test_outer
mutant 'fedmom starts from zero' common/outer.c \
    's/if (o == OUTER_FEDMOM) {/if (false) {/' tests/unit/test_aggregate
mutant 'the moments are not corrected for the round' common/outer.c \
    's/pow(o->beta2, round)/pow(o->beta2, 1)/' tests/unit/test_outer
mutant 'yogi is adam' common/outer.c \
    's/bool yogi = .*;/bool yogi = false;/' tests/unit/test_outer
mutant 'the second array is read where the first is' server/aggregate_block.c \
    's/return offset + i \* j->table->total/return offset + 0 * i * j->table->total/' tests/unit/test_aggregate
mutant 'a loud update is not clipped' server/aggregate.c \
    's/w->weights\[k\] = w->shares\[k\] \* w->factors\[k\];/w->weights[k] = w->shares[k];/' tests/unit/test_aggregate
mutant 'moments are added up instead of averaged' server/aggregate_block.c \
    's/add_scaled(b->x, b->raw, w->shares\[k\], n)/add_scaled(b->x, b->raw, 1.0, n)/' tests/unit/test_aggregate
mutant 'a tensor that does not travel shifts what follows' server/aggregate_block.c \
    's/l ? l->index\[part\]\[at->tensor\]/l ? at->tensor/' tests/unit/test_aggregate
mutant 'a second moment may be negative' server/update.c \
    's/if (v\[i\] < 0.0F) {/if (false) {/' tests/unit/test_update
mutant 'a frozen tensor still counts in the norm' client/trainer_step.c \
    's/i < t->frozen_count; i++) {/i < 0; i++) {/' tests/kernels/test_trainer
mutant 'a frozen tensor is stepped' client/trainer.c \
    's/if (t->config.freeze.count == 0) {/if (t->config.freeze.count >= 0) {/' tests/kernels/test_trainer
mutant 'a star stops at a dot' common/patterns.c \
    "s/s = ++eaten;/s = *eaten == '.' ? \"?\" : ++eaten;/" tests/unit/test_layout
mutant 'a slow silo takes as many steps as the fastest' server/db_open.c \
    's/o->fastest = fmax(/o->fastest = fmin(/' tests/api rounds.test_slow_silos_take_fewer_steps_when_the_spec_says_so
mutant 'the floor of steps is forgotten' server/budget.c \
    's/steps < (double)floor_steps/false/' tests/unit/test_budget
mutant 'a plan forgets what comes down' common/planner.c \
    's/double shared = k \* (r->down_bytes + r->up_bytes)/double shared = k * (r->up_bytes)/' tests/unit/test_planner
mutant 'all communication can be hidden' common/planner.c \
    's/hidden > compute ? hidden - compute : 0.0/0.0 * hidden/' tests/unit/test_planner
mutant 'updates are folded as they came, not by slot' server/db_fold.c \
    "s/ORDER BY u.slot\"/ORDER BY u.id\"/" tests/api rounds.test_updates_are_folded_in_the_order_of_slots
mutant 'every silo weighs the same' server/checkpoint_next.c \
    's/: (double)j->updates\[k\].tokens;/: 1.0;/' tests/unit/test_checkpoint
mutant 'a stored file is not compared with its digest' server/checkpoint_file.c \
    's/if (!st && !digest_equal(&got, &in->want))/if (0)/' tests/unit/test_checkpoint
mutant 'NaN passes for a number' common/codec.c \
    's/return codec_amax_bits(out, n) >= 0x7f800000/return codec_amax_bits(out, n) == 0x7f800000/' tests/unit/test_update
mutant 'NaN passes for a number, whatever the file' common/codec.c \
    's/return codec_amax_bits(out, n) >= 0x7f800000/return codec_amax_bits(out, n) == 0x7f800000/' tests/fuzz/fuzz_codec
mutant 'NaN passes for a moment' server/update.c \
    's/if ((bits & 0x7f800000U) == 0x7f800000U)/if (bits == 0x7f800000U)/' tests/unit/test_update
mutant 'no bound on the norm of an update' server/accept.c \
    's/if (c->norm > UPDATE_NORM_RATIO_MAX \* base)/if (0)/' tests/api silos.test_no_hostile_update_counts

# ---- who may, and when ----
mutant 'the epoch of a lease is not checked' server/seat.c \
    's/ \&\& s->epoch == epoch ? / ? /' tests/api silos.test_claiming_again_gives_the_same_task_and_ends_the_old_epoch
mutant 'a seat goes to a silo of other tokens' server/seat.c \
    's/ || !c->tokens_fit//' tests/api participation.test_a_free_seat_is_for_silos_of_the_run_s_tokenizer
mutant 'accept does not lock the round' server/db_task.c \
    's/^    " FOR SHARE";/    "";/' tests/api silos.test_an_accept_waits_for_whoever_seals_the_round
mutant 'a revoked token is accepted' server/auth.c \
    's/WHERE revoked_at IS NULL"/WHERE true"/' tests/api people.test_a_token_is_made_shown_once_and_revoked
mutant 'a name that begins as loopback does is taken for it' common/loopback.c \
    's/return strcmp(host, "localhost")/return strncmp(host, "127.", 4) == 0 || strcmp(host, "localhost")/' tests/unit/test_loopback
mutant 'the cookie travels in the clear behind a proxy' server/main.c \
    's/return p->o.public_url \&\& strncasecmp/return false \&\& strncasecmp/' tests/api people.test_what_a_proxy_says_in_tls_stays_there
mutant 'an expired token is accepted' server/auth.c \
    's/OR expires_at > clock_timestamp()/OR true/' \
    tests/api people.test_a_token_revoked_or_expired_behind_our_back_is_refused_within_a_second
mutant 'a stream outlives its session' server/stream.c \
    "s/SELECT token_id FROM session WHERE hash = decode(h, 'hex')\"/SELECT token_id FROM session WHERE true\"/" \
    tests/api streams.test_logging_out_ends_the_streams_of_that_session_alone
mutant 'a cookie may write from any page' server/auth.c \
    's/if (by_cookie \&\& is_write(rq) \&\& !origin_allowed(rq))/if (0)/' \
    tests/api people.test_login_gives_a_cookie_that_needs_our_origin_to_write
mutant 'a round is sealed one update short' server/round.c \
    's/p->accepted >= p->expected/p->accepted + 1 >= p->expected/' tests/unit/test_round
mutant 'seats do not depend on the round' server/sampling.c \
    's/(uint64_t)round)/0)/' tests/unit/test_sampling
mutant 'an update may claim more tokens than the plan' sql/0004_rounds.sql \
    "s/WHEN NEW.tokens > t.plan_tokens THEN .*/WHEN false THEN ''/" tests/schema

# ---- the rules, in the simulation of whole runs ----
sim=tests/fault/test_sim_rounds
mutant 'simulation: an old epoch still holds the seat' server/seat.c 's/ \&\& s->epoch == epoch ? / ? /' $sim
mutant 'simulation: anybody with the epoch holds the seat' server/seat.c \
    's/ \&\& s->silo == silo \&\& s->epoch/ \&\& s->epoch/' $sim
mutant 'simulation: a claim does not raise the epoch' server/seat.c 's/^    s->epoch++;//' $sim
mutant 'simulation: sealed one update short' server/round.c \
    's/p->accepted >= p->expected/p->accepted + 1 >= p->expected/' $sim
mutant 'simulation: sealed one below the quorum at the deadline' server/round.c \
    's/    if (p->accepted >= p->quorum) {/    if (p->accepted + 1 >= p->quorum) {/' $sim
mutant 'simulation: an aggregation that was stopped may still publish' server/round.c \
    's/ \&\& newest == epoch;/ + 0 * (newest == epoch);/' $sim
mutant 'simulation: a repeated finish is refused' server/seat.c \
    '/^enum accept seat_accept/,/^}/s/if (counted)/if (0 \&\& counted)/' $sim
mutant 'simulation: an upload counts before it is whole' server/seat.c 's/if (!placed)/if (0 \&\& !placed)/' $sim
mutant 'simulation: a silo takes a second seat of the round' server/seat.c \
    's/ || has_seat(r, c->silo)) {/) {/' $sim
mutant 'simulation: a lease is over at its end, not a lease time later' server/seat.c \
    's/return s->lease_until + ROUND_LEASE_S;/return s->lease_until;/' $sim
mutant 'simulation: a seat is lost as soon as its silo is gone' server/seat.c \
    's/ || s->lease_until + ROUND_LEASE_S >= now/ || now < 0/' $sim
mutant 'simulation: failures of a seat are not counted' server/seat.c 's/s->attempt++;/;/' $sim
mutant 'simulation: who sits out is never called back' server/round.c \
    's/? ROUND_RECALL : ROUND_WAIT/? ROUND_WAIT : ROUND_WAIT/' $sim
mutant 'simulation: a damaged update may cost the quorum' server/round.c \
    's/return accepted >= quorum;/return accepted >= 0 * quorum;/' $sim
mutant 'simulation: an update that was carried over has no seat' server/round.c \
    '/^bool round_eligible/,/^}/s/if (s->carried)/if (!s)/' $sim
mutant 'simulation: an outage of ours costs seats' server/seat.c \
    's/s->lease_until = fmax(s->lease_until, now) + ROUND_LEASE_S;/(void)now;/' $sim

# ---- durable before it is said ----
mutant 'a chunk is answered without a commit of its offset' server/api_bulk.c \
    's/^    TRY(db_upload_commit(rq->db, /    if (0) TRY(db_upload_commit(rq->db, /' \
    tests/api silos.test_an_upload_survives_a_restart_of_the_server
mutant 'a prepared statement outlives its connection' server/db.c \
    '/^    db->stale = false;/,/^    prepared_forget/s/^    prepared_forget(&db->prepared);//' tests/fault/test_db
mutant 'a statement for other tables is run for ever' server/db.c \
    's/db->stale = db->stale ||/db->stale = false \&\&/' tests/fault/test_db
mutant 'what was woken waits while there is something new' server/http_turn.c \
    's/FRESH_IN_A_ROW = 3/FRESH_IN_A_ROW = 3000/' tests/unit/test_http_turn
mutant 'no worker is kept for what is new' server/http_turn.c \
    's/t->parked_busy < t->workers - .*;/true;/' tests/unit/test_http_turn
mutant 'who waits for its turn already is not called to the front' server/http_work.c \
    's/^        promote(w, &names);/        (void)promote;/' tests/unit/test_http_work
mutant 'a paused run calls its silos all the time' server/http_herald.c \
    "s/AND q.state = 'open' AND r.state = 'running'\"/AND q.state = 'open'\"/" tests/api silos.test_nobody_is_called_for_a_paused_run
mutant 'a statement that finds no place has the place of another' server/db_prepared.c \
    's/^    return -1;/    return 0;/' tests/fault/test_db
mutant 'evaluations that nobody made are complete' server/db_eval.c \
    "s/HAVING bool_or(t.state = 'done') AND/HAVING/" \
    tests/api rounds.test_an_evaluation_nobody_does_does_not_keep_a_run_from_ending
mutant 'a failed transaction passes for committed' server/db.c \
    's/return !st \&\& failed ? .*/return st;/' tests/fault/test_db
mutant 'a lost COMMIT passes for a commit' server/db.c \
    's/^    return db_commit(db, e);/    st = db_commit(db, e); return st == ST_RETRY ? ST_OK : st;/' tests/fault/test_db
mutant 'a blob is named before it is synced' server/blob_folder.c \
    's/ || FAULT_ERR("blob.sync.file") || fsync(fd))/)/' tests/unit/test_blob
mutant 'the folder of a blob is not synced' server/blob_folder.c \
    '/^enum status blob_folder_place/,/^}/s/return blob_folder_sync(f->fd, n.inner, e);/return ST_OK;/' tests/unit/test_blob
mutant 'transfers take the connections of control' server/http_work.c \
    's/x->listener == LISTENER_BULK ? s->bulk_pool/false ? s->bulk_pool/' tests/api silos.test_control_does_not_wait_for_transfers
mutant 'a chunk holds a connection while it is synced' server/http.c \
    's/^    if (sink \&\& sink->end) {/    if (exchange_db_take(x) \&\& sink \&\& sink->end) {/' tests/api silos.test_a_slow_disk_holds_no_connection
mutant 'the settings of the role that serves are not looked at' server/main.c \
    's/settings_check_session(\*server, p->o.unsafe_database/settings_check_session(*server, true/' tests/api cluster.test_a_role_that_would_lose_what_it_acknowledges_does_not_serve
mutant 'too few connections are not said' server/settings.c \
    's/if (room < connections)/if (false)/' tests/api cluster.test_too_few_connections_are_said_at_the_start
mutant 'each who asks fetches the object anew' server/blob_fetch.c \
    's/while (x \&\& !digest_equal(&x->digest, d))/while (x)/' tests/unit/test_blob_fetch
mutant 'how a fetch ended is lost with who asked' server/blob_fetch.c \
    's/if (x->waiting == 0 \&\& st == ST_OK)/if (x->waiting == 0)/' tests/unit/test_blob_fetch
mutant 'a connection of the database waits for the bucket' server/api_file.c \
    's/^    request_db_give(rq);//' tests/api store.test_many_who_ask_for_a_cold_object_make_one_fetch_and_keep_nobody_waiting
mutant 'a worker waits for the bucket' server/api_file.c \
    's/return rq->bulk ? wait_here/return true ? wait_here/' tests/api store.test_many_who_ask_for_a_cold_object_make_one_fetch_and_keep_nobody_waiting
mutant 'the cache fills the disk' server/blob.c \
    's/? 2 \* blob_floor_bytes(s) - room : 0/? 0 : 0/' tests/api store.test_the_cache_gives_way_and_its_bytes_count_as_room
mutant 'the cache gives up what was just used' server/blob_bucket.c \
    's/f->unused_s >= o->unused_s/f->unused_s <= 999999/' tests/api store.test_the_cache_gives_way_and_its_bytes_count_as_room
mutant 'what the cache would give up is no room' server/blob.c \
    's/asked ? room + blob_bucket_cached(&s->blobs) :/asked ? room :/' tests/api store.test_the_cache_gives_way_and_its_bytes_count_as_room
mutant 'weights go through control as fast as they can' server/api_run.c \
    's/^    rs->pace = rq->server->bulk_pace;//' tests/api store.test_weights_go_no_faster_than_the_rate_whatever_the_listener_and_control_goes_on
mutant 'the event loop sleeps for a download' server/http_answer.c \
    's/if (x->listener == LISTENER_BULK) {/if (true) {/' tests/api store.test_weights_go_no_faster_than_the_rate_whatever_the_listener_and_control_goes_on
mutant 'a chunk is said to be durable before it is' server/upload_file.c \
    's/} else if (FAULT_ERR("upload.sync") || fdatasync(f->fd))/} else if (0)/' tests/unit/test_upload_file
mutant 'the journal of a silo is not synced' client/durable.c \
    '/^enum status file_place/,/^}/s/? fsync(fd) : -1/? 0 : -1/' tests/unit/test_state
mutant 'the moments of a refused update are kept' client/state.c \
    's/JOURNAL_SETTLED \&\& s->j.keep/JOURNAL_SETTLED/' tests/unit/test_state

mutant 'a checkpoint is made again without comparing it' server/checkpoint_file.c \
    's/if (o->want \&\& !digest_equal(d, o->want))/if (0)/' tests/unit/test_checkpoint
mutant 'an acknowledgement is acted on before it is synced' client/acks.c \
    's/ \&\& fdatasync(fd) == 0)/)/' tests/unit/test_acks
mutant 'the check believes a file by its size' server/check.c \
    's/return r.bytes == size \&\& digest_equal(&got, want)/return r.bytes == size/' \
    tests/api store.test_a_damaged_a_short_and_a_missing_file_are_found

mutant 'a file is named before its row is locked' server/db_blob.c \
    '/^enum status db_blob_place/,/^}/{s/TRY(db_exec(db, SQL_LIVE, 2, argv, NULL, e));/TRY(blob_place(blobs, tmp_id, d, e));/;s/return blob_place(blobs, tmp_id, d, e);/return db_exec(db, SQL_LIVE, 2, argv, NULL, e);/}' \
    tests/store/test_race
mutant 'a row is owned without a look for its file' server/db_blob.c \
    '/^enum status db_blob_own/,/^}/s/TRY(blob_stat(blobs, d, &size, e));/size = bytes;/' tests/store/test_race
mutant 'a file is removed before anybody is asked' server/db_blob.c \
    '/^static enum status remove_tx/,/^}/s/TRY(db_query(db, a, SQL_LOCK_DEAD, 1, argv, &rows, e));/TRY(blob_remove(r->blobs, \&r->digest, e));TRY(db_query(db, a, SQL_LOCK_DEAD, 1, argv, \&rows, e));/' \
    tests/store/test_race
mutant 'a file is removed under a lock that has lapsed' server/db_blob.c \
    's/return blob_set_aside(r->blobs, &r->digest, r->aside, e);/return blob_remove(r->blobs, \&r->digest, e);/' tests/store/test_race
mutant 'a file that was set aside is removed though a row has it' server/db_blob.c \
    '/^static enum status settle_aside/,/^}/s/if (claimed) {/if (true) {/' tests/store/test_race
mutant 'an unknown file is reaped without a row' server/db_blob.c \
    '/^static enum status reap_tx/,/^}/s/TRY(db_exec(db, SQL_CLAIM, 2, argv, &claimed, e));/claimed = 1;/' tests/store/test_race

# ---- bytes on their way ----
mutant 'the offset of a chunk is not checked' server/api_bulk.c \
    's/if (c->offset != durable || /if (/' tests/api silos.test_an_upload_resumes_where_it_was
mutant 'the digest of a chunk is not compared' server/upload_file.c \
    's/if (!has_its_digest(f))/if (0)/' tests/unit/test_upload_file
mutant 'digests of a closed store go on' server/upload_hash.c \
    's/hashes.kept\[i\].store == s \&\& id\[0\] ? reclaim(id) : NULL/NULL/' tests/unit/test_upload_file
mutant 'who takes a file over holds up all others' server/upload_file.c \
    '/^static void close_locked/,/^}/s/(void)pthread_mutex_lock(&f->lock);/(void)pthread_mutex_lock(\&registry.lock);&(void)pthread_mutex_unlock(\&registry.lock);/' tests/unit/test_upload_file
mutant 'credentials are read once' server/s3_keys.c \
    's/if (s->keys_file \&\& changed(s))/if (false)/' tests/unit/test_s3
mutant 'an older request takes the file from a newer one' server/upload_file.c \
    's/old->writer_epoch > writer_epoch;/old->writer_epoch > writer_epoch + 1;/' tests/unit/test_upload_file
mutant 'the digest of an upload is not compared' server/accept.c \
    's/if (!digest_equal(&got, &c->sha256))/if (0)/' \
    tests/api silos.test_a_file_that_differs_from_its_declared_digest_is_refused
mutant 'a download is taken as it is' client/download.c \
    's/if (d->digest \&\& !digest_equal(&got, d->digest))/if (0)/' tests/unit/test_transport
mutant 'a renewal takes a new key' server/tls_make.c \
    's/if (st == ST_NOT_FOUND \&\& !has_cert)/if (st == ST_NOT_FOUND)/' tests/unit/test_tls_make
mutant 'a certificate is kept until it ends' server/tls_make.c \
    's/lasts(m, m->cert, TLS_RENEW_DAYS)/lasts(m, m->cert, 0)/' tests/unit/test_tls_make
mutant 'a key of another certificate is shown' server/tls_make.c \
    's/if (X509_check_private_key(cert, key) != 1)/if (false)/' tests/unit/test_tls
mutant 'a pin that differs is not seen' client/transport.c \
    's/if (!rc && t->pin) {/if (false) {/' tests/api pins.test_a_client_believes_the_pinned_key_and_no_other
mutant 'a pin beside authorities makes them idle' client/transport.c \
    's/t->pin \&\& !t->ca_file/t->pin/' tests/api pins.test_without_a_pin_a_private_certificate_needs_its_authority
mutant 'a hole in a safetensors file is accepted' common/safetensors.c \
    's/if (t->begin != at)/if (t->begin < at)/' tests/unit/test_safetensors
mutant 'an overlap in a safetensors file is accepted' common/safetensors.c \
    's/if (t->begin != at)/if (t->begin > at)/' tests/unit/test_safetensors
mutant 'the last byte of a range is left out' server/range.c \
    's/size - 1) - first + 1;/size - 1) - first;/' tests/unit/test_range

mutant 'two lengths of one request' server/guard.c \
    's/^        seen->lengths++;/        seen->lengths = 1;/' tests/unit/test_guard
mutant 'a silo forgets a run that the server does not know' client/agent_sweep.c \
    's/^        return false;/        return st == ST_NOT_FOUND;/' tests/unit/test_agent_sweep
mutant 'a refusal to tell settles an update as late' client/agent_upload.c \
    's/bool forgotten = .*/bool forgotten = r.http >= 400 ||/' tests/unit/test_agent_upload
mutant 'a base is fetched to its end for a round that is over' client/agent_base.c \
    's/ || (a->fetching \&\& beat_order(a->fetching) != BEAT_CONTINUE)//' tests/unit/test_agent_base
mutant 'what was refused is tried again' client/reply.c \
    's/return st == ST_RETRY || st == ST_NET;/return st != ST_OK;/' tests/unit/test_transport
mutant 'an event that commits late is skipped' server/stream.c \
    's/   AND e.xid < pg_snapshot_xmin(pg_current_snapshot())"/"/' \
    tests/api streams.test_events_of_transactions_that_commit_late_are_not_skipped

# ---- fewer bytes ----
mutant 'a residual is taken before its update is counted' client/state.c \
    's/FAULT("journal.trained.done");/TRY(take(s, STATE_RESIDUAL_NEXT, STATE_RESIDUAL, e));/' tests/unit/test_feedback
mutant 'the residual of a refused update is kept' client/state.c \
    's/if (settled \&\& s->j.keep) {/if (settled) {/' tests/unit/test_feedback
mutant 'a residual does not fade' client/feedback.c \
    's/u\[i\] += w->beta \* w->block\[i\];/u[i] += w->block[i];/' tests/unit/test_feedback
mutant 'a scale is rounded to the nearest, so that values clip' common/codec_int8.c \
    's/= bf16_up(/= bf16_nearest(/' tests/unit/test_codec
mutant 'a scale may be anything' common/codec.c \
    's/bool good = bits == 0 || (bits >= .*/bool good = true; (void)bits;/' tests/unit/test_codec
mutant 'levels may fall' common/codec.c \
    's/ \&\& (j == 0 || v >= r->level\[j - 1\]);/;/' tests/unit/test_codec
mutant 'a place behind the end of its tile is accepted' common/codec_topk.c \
    's/(index += 1 + (int64_t)gap) >= m) {/(index += 1 + (int64_t)gap) > m) {/' tests/unit/test_codec
mutant 'bits after the last place are not looked at' common/codec_topk.c \
    's/bool rest = .*;/bool rest = false;/' tests/unit/test_codec
mutant 'bits after the last code are not looked at' common/codec_levels.c \
    's/if (last >> (8 \/ per_byte \* rest)) {/if (0) {/' tests/unit/test_codec
mutant 'the code that no encoder gives is accepted' common/codec_int8.c \
    's/bad |= c == -128;/bad |= 0;/' tests/unit/test_codec
mutant 'a header may be written in another way' common/codec_file.c \
    's/if (memcmp(got, want, (size_t)len) != 0) {/if (0) {/' tests/unit/test_codec_file
mutant 'a tensor that fits badly does not go one rung up' common/codec_write.c \
    's/if (in_bounds(ct->rule.codec, s)) {/if (true || in_bounds(ct->rule.codec, s)) {/' tests/unit/test_codec_file

# ---- training ----
mutant 'first weights do not depend on the seed' common/params.c \
    's/rng_key(seed, p->name)/rng_key(0, p->name)/' tests/unit/test_params
mutant 'a snapshot of another base goes on' client/state.c \
    's/ \&\& strcmp(a->base, b->base) == 0 \&\&/ \&\&/' tests/unit/test_state
mutant 'the learning rate follows the steps of this silo' client/trainer_step.c \
    's/double lr = inner_lr(&t->config.inner, step)/double lr = inner_lr(\&t->config.inner, t->ranks[0].t)/' tests/kernels/test_trainer
mutant 'the rows do not depend on the silo' client/data.c \
    's/(uint64_t)(uint32_t)silo_ordinal)/0)/' tests/unit/test_data
mutant "ADOPT's clamp is one step ahead" client/trainer_step.c \
    's/\.clamp = pow((double)(now - 1), 0.25)/.clamp = pow((double)now, 0.25)/' tests/kernels/test_trainer
mutant 'weight decay pushes outward' kernels/ref/optim.c \
    's/(REAL)(1.0 - s->decay)/(REAL)(1.0 + s->decay)/' tests/kernels/test_optim
mutant "ALiBi's slope has the other sign" kernels/ref/attn.c \
    's/(double)(j - i)/(double)(i - j)/' tests/kernels/test_ref
mutant 'a token sees the next one' kernels/ref/attn.c \
    's/j <= i; j++/j <= i + (i + 1 < s->T); j++/' tests/kernels/test_ref
mutant 'GELU by its tanh approximation' kernels/ref/gelu.c \
    's/return 0.5 \* erfc(-h \* ROOT_HALF);/return 0.5 * (1.0 + tanh(2.0 * ROOT_HALF * 1.1283791670955126 * ROOT_HALF * (h + 0.044715 * h * h * h)));/' \
    tests/kernels/test_ref
mutant 'targets are the inputs' client/trainer_step.c \
    's/from + i \* (T + 1) + 1, size/from + i * (T + 1), size/' tests/kernels/test_trainer
mutant 'a merge of a higher rank comes first' client/bpe.c \
    's/with\[i\]->rank < with\[best\]->rank/with[i]->rank > with[best]->rank/' tests/unit/test_tokenizer

mutant 'numbers of steps done twice stand twice' client/metrics_file.c \
    's/step < 0 || step > last/step < 0/' tests/unit/test_solo
mutant 'a training goes on with the moments of its beginning' client/solo.c \
    's/return trainer_load_state(s->trainer, path, e);/TRY(trainer_load_state(s->trainer, path, e)); trainer_reset_state(s->trainer); return ST_OK;/' \
    tests/unit/test_solo
mutant 'every silo of a mix has the same shares' client/mix.c \
    's/(uint64_t)silo);/(uint64_t)(silo > 999));/' tests/unit/test_mix

# ---- how much one silo may ask ----
mutant 'a silo asks as often as it likes' server/http_work.c \
    's/TRY(exchange_may_ask(x, e));//' tests/api silos.test_a_silo_that_asks_without_pause_is_told_to_wait_and_no_other_is
mutant "one silo's requests count as another's" server/trickle.c \
    's/if (strcmp(t->of\[at\].name, name) != 0) {/if (!t->of[at].name[0]) {/' tests/unit/test_trickle
mutant 'a silo has as many curves as it likes' server/db_task.c \
    's/known + fresh > LIMIT_METRICS_NAMES/false/' tests/api silos.test_a_silo_has_no_more_than_so_many_curves_in_a_run

# ---- the chain of events ----
mutant 'events are chained in one statement, however many' server/db_tend.c \
    's/CHAIN_MOST = 1000/CHAIN_MOST = 1000000/' tests/api chain.test_a_round_with_very_many_events_closes_and_they_are_chained_beside_it
mutant 'two sessions chain one run at once' sql/0017_chain.sql \
    's/IF NOT pg_try_advisory_xact_lock(.*) THEN/IF false THEN/' tests/api chain.test_two_sessions_chain_one_run_in_turn_and_what_is_cut_is_done_again

# ---- what is shown ----
mutant 'smoothing takes perplexities, not losses' server/series.c \
    's/want->exp ? exp(s) : s/s/' tests/unit/test_series

# ---- seen by the rig: real programs, killed and held open at their critical lines ----
mutant 'rig: accept does not lock the round' server/db_task.c \
    's/^    " FOR SHARE";/    "";/' tests/rig 'race --seconds 60 --seed 1'
mutant 'rig: a seal does not lock the round' server/db_round.c \
    "s/AND state = 'open' FOR NO KEY UPDATE\"/AND state = 'open'\"/" tests/rig 'race --seconds 60 --seed 1'
mutant 'rig: the epoch of a lease is not checked' server/seat.c \
    's/ \&\& s->epoch == epoch ? / ? /' tests/rig 'race --seconds 60 --seed 1'
mutant 'rig: a blob is named before it is synced' server/blob_folder.c \
    's/ || FAULT_ERR("blob.sync.file") || fsync(fd))/)/' tests/rig 'power --cuts 40 --seed 1'
mutant 'rig: the folder of a blob is not synced' server/blob_folder.c \
    's/int bad = FAULT_ERR("blob.sync.folder") || fsync(fd);/int bad = 0;/' tests/rig 'power --cuts 40 --seed 1'
mutant 'rig: a chunk is said to be durable before it is' server/upload_file.c \
    's/} else if (FAULT_ERR("upload.sync") || fdatasync(f->fd))/} else if (0)/' tests/rig 'power --cuts 60 --seed 1'
mutant 'rig: the journal of a silo is not synced' client/durable.c \
    '/^enum status file_place/,/^}/s/? fsync(fd) : -1/? 0 : -1/' tests/rig 'power --cuts 60 --seed 1'
mutant 'rig: moments are kept before anything is accepted' client/agent_train.c \
    's/run_state_path(&w->rs, STATE_MOMENTS_NEXT, next);/run_state_path(\&w->rs, STATE_MOMENTS, next);/' \
    tests/rig 'power --cuts 60 --seed 1'
mutant 'rig: a commit is answered before it is on the disk' server/db.c \
    's/^    enum status st = db_exec(db, "COMMIT"/    (void)!db_exec(db, "SET LOCAL synchronous_commit = off", 0, NULL, NULL, NULL); enum status st = db_exec(db, "COMMIT"/' \
    tests/rig 'kills --server 0 --client 0 --database 30 --stops 0 --seed 1'
mutant 'rig: an update is acknowledged though its transaction failed' server/db_upload.c \
    's/^    TRY(db_tx(db, accept_tx, &w, e));/    (void)!db_tx(db, accept_tx, \&w, e);/' \
    tests/rig 'kills --server 0 --client 0 --database 30 --stops 0 --seed 1'
mutant 'rig: a row is committed before its file has a name' server/db_upload.c \
    's/^    TRY(db_blob_place(db, a, w->blobs, .*/    TRY(db_exec(db, "INSERT INTO blob (digest, bytes) SELECT sha256, bytes FROM upload WHERE id = $1 ON CONFLICT DO NOTHING", 1, argv, NULL, e));/; s/^    FAULT("place.committed");/    FAULT("place.committed"); if (!w.no.code) { TRY(blob_place(s, u->id, \&u->sha256, e)); }/' \
    tests/rig 'power --cuts 60 --seed 1'
mutant 'rig: a chunk is acknowledged and not noted' server/api_bulk.c \
    's/^    TRY(db_upload_commit(rq->db, /    if (0) TRY(db_upload_commit(rq->db, /' tests/rig 'kills --server 2 --client 0 --database 0 --stops 0 --seed 1'
mutant 'rig: no fence at publish' server/round.c \
    's/return state == ROUND_IS_AGGREGATING \&\& newest == epoch;/return newest >= epoch;/' tests/rig 'two --rounds 120 --seed 1'
mutant 'rig: a silo notes an acceptance that it was not told' client/agent_upload.c \
    's/^        TRY(run_state_upload(s->rs, id, e));/&\n        TRY(acks_note(s->a->config->state_dir, id, s->rs->j.sha256, "run", s->rs->j.key.round, e));/' \
    tests/rig 'kills --server 25 --client 40 --database 0 --stops 5 --seed 1'

# ---- seen by the other harnesses: each in its quick form sees one bug at least ----
mutant 'harness: a damaged chunk is taken' server/upload_file.c \
    's/if (!has_its_digest(f))/if (0)/' tests/fault/hostile.py '--flips 150 --updates 6'
mutant 'harness: a download is taken as it is' client/download.c \
    's/if (d->digest \&\& !digest_equal(&got, d->digest))/if (0)/' tests/fault/flipped.py '--trials 15'
mutant 'harness: a download that was cut begins anew' client/download.c \
    's|headers\[0\] = arena_fmt(a, "Range: .*|(void)0;|' tests/fault/transfer.py '--silos 3 --cuts 6'
mutant "harness: the polls of all silos count as one silo's" server/http_work.c \
    's/n += strcmp(x->rq.who.token_id, token_id) == 0;/n += token_id != NULL;/' tests/fault/load.py quick
mutant 'harness: a lost device is no reason of its own' client/agent.c \
    '/^static int device_is_lost/,/^}/s/return EXIT_NO_DEVICE;/return EXIT_FAILED;/' tests/rig 'points --seed 5'
mutant 'harness: a write that fails ends a silo by a signal' client/durable.c \
    '/^enum status file_write/,/^}/s/^    if (failed) {/&\n        __builtin_trap();/' tests/rig 'nth --seed 3'
mutant 'harness: a silo ends on a full disk' client/agent.c \
    '/^static void after_task/,/^}/s/^        release(a, t, a->fail_code, a->fail_detail);/        if (strcmp(a->fail_code, "disk_full") == 0) { _exit(1); }\n&/' \
    tests/rig 'disk --times 2 --seed 5'

# ---- attention on Hopper, emulated ----
mutant 'the next panel is sought behind the next row' kernels/cuda/attn_ring.h \
    's/(uint32_t)(rows \* PANEL_ROW),$/(uint32_t)PANEL_ROW,/' tests/kernels/test_attn_ring
mutant 'a slot is written again before it was read' kernels/cuda/attn_ring.h \
    's/(n \/ stages \& 1) ^ 1/n \/ stages \& 1/' tests/kernels/test_attn_ring
mutant 'shares: a piece is dealt to the next rank' common/shards.c \
    's/piece % s->ranks), piece/(piece + 1) % s->ranks), piece/' tests/unit/test_shards
mutant 'shares: gradients are summed before the last layer adds to them' client/trainer.c \
    's/layer < t->buckets\[b\].layer/layer > t->buckets[b].layer/' tests/kernels/test_ranks
mutant 'shares: each rank clips by its own chunks alone' client/trainer_step.c \
    's/r->ops->all_reduce(r->be, DTYPE_F64, r->partials, chunks);//' tests/kernels/test_ranks
mutant 'a step begun ahead takes the settings of the one before' kernels/backend.h \
    's/return clip->taken > steps->t ?/return false ?/' tests/kernels/test_steps
mutant 'a step begun ahead takes the settings of the one after' client/trainer_step.c \
    's/r->t + 1 + i, /r->t + 2 + i, /' tests/kernels/test_steps
mutant 'a last turn is given to nobody' kernels/cuda/attn_ring.h \
    's/return who == 0 || !last;/return true;/' tests/kernels/test_attn_ring
mutant 'a tile of k is given back while it is multiplied' kernels/cuda/attn_wgmma.cu \
    's/wgmma_wait<1>();/ring_release(rings.k, n + 1); wgmma_wait<1>();/; s/^        ring_release(rings.k, n + 1);//' \
    tests/kernels/test_wgmma_emulated
mutant 'probabilities change while they are multiplied' kernels/cuda/attn_wgmma_bwd.cu \
    's/wgmma_wait<2>();/wgmma_wait<3>();/; s/^        if (n > 0) {/        if (false) {/' \
    tests/kernels/test_wgmma_emulated
mutant 'a copy brings more than its barrier expects' kernels/cuda/attn_wgmma_bwd.cu \
    's/2 \* S::TILE + TERMS_BYTES/2 * S::TILE/' tests/kernels/test_wgmma_emulated
mutant 'a trial is noted as passed before it is' kernels/cuda/attn_op.cu \
    's/pins_note(f, name, "mma")/pins_note(f, name, "wgmma")/' tests/kernels/test_wgmma_emulated
mutant 'who asks for nothing gets a trial' kernels/cuda/attn_op.cu \
    's/kind == ATTN_MMA \&\& c->attn_wish == ATTN_WGMMA/kind == ATTN_MMA/' tests/kernels/test_wgmma_emulated
mutant 'ranks: who was called off goes on as if nothing was' kernels/cuda/backend.cu \
    's/cuda_fail(c, off);//' tests/kernels/test_cuda_emulated
mutant 'ranks: who waits long is called off, believable or not' kernels/cuda/watch.cu \
    's/since_s > r->patience_s/since_s > 0/' tests/kernels/test_cuda_emulated

# ---- steps of fragments ----
mutant 'each step of a chain counts as one of the same fragment' common/step.c \
    's/(j->count - 1 - i)/(j->count - 1 - 0 * i)/' tests/unit/test_step
mutant 'a step has the fragment of the first round' server/checkpoint_next.c \
    's/layout_step(n->arena, job->spec, job->round)/layout_step(n->arena, job->spec, 1)/' tests/unit/test_step
