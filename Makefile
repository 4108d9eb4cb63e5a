# One Makefile, not recursive. What it makes is under build/$(VARIANT)/, so variants never
# clobber each other; npm's files are web/node_modules and web/vendor.
#
#   make             the three programs          make check         what CI runs
#   make demo        see it work                 make asan, tsan    the C tests, sanitized
#   make test        every test, no GPU needed   make fuzz          each target for FUZZ_S s
#   make bench       how fast                    make cover         lines and branches
#   make bench-claims  the paper's claims, on real text: DATA=folder
#   make deps        packages that are missing   make format, lint  the house style
#   make install     programs and page under PREFIX (/usr/local)
#   make mutants     do tests see planted bugs   make test-fault    kills, cuts, full disks; LONG=1
#   make config      what was detected           make clean, demo-clean  away with what was made
#   make help        this
#
# The engine alone, for which a C compiler is enough: make engine, test-engine, bench-engine;
# on a machine with a GPU, make check-gpu.
# Overridable: CC NVCC CUDA=0|1 DNNL=0|1 SM="80 90" WERROR=1 V=1 FUZZ_S=30 VARIANT=release|debug|...

MAKEFLAGS += --no-builtin-rules
.SUFFIXES:
.DELETE_ON_ERROR:
.SECONDARY:
.DEFAULT_GOAL := all

# make predefines CC, so `?=` would never take effect for it.
ifeq ($(origin CC),default)
CC := gcc
endif
CLANG      ?= clang
PKG_CONFIG ?= pkg-config
VARIANT    ?= release
FUZZ_S     ?= 30
B          := build/$(VARIANT)
Q          := $(if $(V),,@)
comma      := ,

# ---- what this machine has -------------------------------------------------------
NVCC ?= $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))
CUDA ?= $(if $(NVCC),1,0)
CUDA_HOME := $(if $(NVCC),$(abspath $(dir $(NVCC))..))
# CUBLAS=folder where cuBLASLt is not in the toolkit's: it has include/ and lib/.
CUDA_LIB  := $(firstword $(if $(CUBLAS),$(CUBLAS)/lib) $(wildcard $(CUDA_HOME)/lib64 $(CUDA_HOME)/targets/x86_64-linux/lib))
LT        := $(firstword $(wildcard $(addsuffix /include/cublasLt.h,$(CUBLAS) $(CUDA_HOME) $(CUDA_HOME)/targets/x86_64-linux)))
CXX_FOUND := $(shell command -v $(CXX))
DNNL ?= $(if $(wildcard /usr/include/dnnl.h /usr/local/include/dnnl.h),1,0)
SM   ?= 80 90

# Sanitizers and gcov know nothing of nvcc's code; TSan knows nothing of OpenMP's barriers.
ifneq ($(filter asan tsan cover fuzz,$(VARIANT)),)
override CUDA := 0
endif
ifneq ($(filter tsan fuzz,$(VARIANT)),)
override DNNL := 0
endif
OPENMP := $(if $(filter tsan fuzz,$(VARIANT)),,-fopenmp)
ifeq ($(CUDA)$(LT),1)
$(info nvcc is here, but not cublasLt.h: the CUDA backend is not built)
override CUDA := 0
endif

# ---- flags -----------------------------------------------------------------------
# No fused a*b+c: the reference must give the same bits with and without FMA hardware.
# Never -Ofast or -ffast-math: they delete the isfinite() that guards aggregation.
WARN_both := -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wcast-qual -Wformat=2 -Wstrict-prototypes \
             -Wmissing-prototypes -Wold-style-definition -Wpointer-arith -Wvla -Wwrite-strings -Wundef \
             -Wnull-dereference -Wswitch-enum -Wno-missing-field-initializers
# clang takes NAN, a float constant, for a promotion.
WARN_gcc  := -Wformat-signedness -Wduplicated-cond -Wlogical-op -Wdouble-promotion
WARN      := $(WARN_both) $(if $(findstring clang,$(CC)),,$(WARN_gcc))
BASE := -std=c11 -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -ffp-contract=off -fno-common \
        -fno-omit-frame-pointer -fstack-protector-strong -g
INC  := -I. $(shell $(PKG_CONFIG) --cflags libpq libcurl libmicrohttpd 2>/dev/null) -include common/banned.h

OPT.release := -O2 -D_FORTIFY_SOURCE=2
OPT.fault   := -O2 -D_FORTIFY_SOURCE=2 -DPHOTON_FAULTS  # as released, with common/fault.h awake
OPT.debug   := -O0
OPT.asan    := -O1 -fsanitize=address,undefined -fno-sanitize-recover=all
OPT.tsan    := -O1 -fsanitize=thread
OPT.fuzz    := -O1 -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all
OPT.cover   := -O0 --coverage -DNDEBUG  # here alone: an assert's failing side is not a branch to cover
OPT := $(or $(OPT.$(VARIANT)),$(error unknown VARIANT=$(VARIANT)))

CFLAGS  = $(BASE) $(OPT) $(WARN) $(if $(WERROR),-Werror) $(INC)
# The CUDA object is looked for beside the program: from bin/, and from tests/<kind>/.
LDFLAGS = $(filter -fsanitize% --coverage,$(OPT)) -Wl,-rpath,'$$ORIGIN/../lib:$$ORIGIN/../../lib'
# Machine code for each of $(SM), and PTX of the last for the GPUs that come after. Never
# --use_fast_math. The step and the codecs have the CPU's bits: no fused multiply-add. A
# kernel on tensor cores that spills registers is no faster than one without: that is an error, and
# so is what ptxas only notes, products of a warpgroup that wait where nobody asked them to (C75..). Hopper's own
# instructions are machine code for it alone; attn_op.cu asks the device before it goes there.
NVCCFLAGS := -O3 -std=c++20 -I. $(addprefix -I,$(patsubst %/cublasLt.h,%,$(LT))) -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra$(if $(WERROR),$(comma)-Werror)
NVARCH    := $(foreach s,$(SM),-gencode arch=compute_$(s),code=sm_$(s)) \
             -gencode arch=compute_$(lastword $(SM)),code=compute_$(lastword $(SM))

LIBS_engine := $(if $(filter 1,$(DNNL)),-ldnnl) $(OPENMP) -ldl -lm -lpthread
LIBS_server := $(shell $(PKG_CONFIG) --libs libpq libmicrohttpd gnutls libcjson libcrypto libcurl 2>/dev/null) -lm -lpthread
LIBS_client := $(shell $(PKG_CONFIG) --libs libcurl libcjson libcrypto libpcre2-8 libutf8proc zlib 2>/dev/null)
LIBS_cuda   := $(addprefix -L,$(CUDA_LIB)) -lcublasLt $(addprefix -Xlinker -rpath -Xlinker ,$(CUDA_LIB))

# ---- sources: adding a file edits nothing here ----------------------------------------
objs = $(patsubst %,$(B)/%.o,$(1))

# The engine (kernels, model, trainer) links common's pure half alone; what leans on an outside
# library, or on something that does, is in archives of its own: $(FORMATS) for common, CLIENT.
FORMATS := $(wildcard $(addprefix common/,codec_file.c codec_write.c json.c hash.c id.c safetensors.c run_header.c run_spec.c spec_print.c spec_reader.c step.c))
COMMON  := $(filter-out $(FORMATS),$(wildcard common/*.c))
KERNELS := $(wildcard kernels/*.c kernels/ref/*.c) \
           $(filter-out $(if $(filter 1,$(DNNL)),%/gemm_own.c,%/gemm_dnnl.c),$(wildcard kernels/cpu/*.c))
ENGINE  := $(wildcard client/model*.c client/trainer*.c client/mfu.c)
CLIENT  := $(filter-out client/main.c $(ENGINE),$(wildcard client/*.c))
SERVER  := $(filter-out server/main.c,$(wildcard server/*.c))
PLUGIN  := $(if $(filter 1,$(CUDA)),$(if $(wildcard kernels/cuda/*.cu),$(B)/lib/photon-cuda.so))

# The CUDA kernels run on the host too, emulated by fibers, of which sanitizers know nothing.
EMULATED     := $(if $(CXX_FOUND),$(if $(filter release debug,$(VARIANT)),$(patsubst %,$(B)/tests/kernels/test_%_emulated,cuda wgmma steps)))
ENGINE_TESTS := $(filter-out %_emulated,$(patsubst %.c,$(B)/%,$(wildcard tests/kernels/test_*.c))) $(EMULATED)
UNIT_TESTS   := $(patsubst %.c,$(B)/%,$(wildcard tests/unit/test_*.c))
FAULT_TESTS  := $(patsubst %.c,$(B)/%,$(wildcard tests/fault/test_*.c))
FAULT_TOOLS  := $(addprefix $(B)/tests/fault/,proxy send_update shim.so)
FUZZERS      := $(patsubst %.c,$(B)/%,$(wildcard tests/fuzz/fuzz_*.c))
C_TESTS      := $(UNIT_TESTS) $(ENGINE_TESTS) $(FAULT_TESTS) $(FUZZERS)
FOLDERS      := common kernels client server tests
C_HEADERS    := $(shell find $(FOLDERS) -name '*.h')
C_FILES      := $(shell find $(FOLDERS) -name '*.[ch]' -o -name '*.cu')

# ---- programs -----------------------------------------------------------------------
.PHONY: help all engine web install deps demo demo-clean check-gpu test test-all test-c test-engine test-schema test-store test-api test-web test-page test-load test-e2e check check-all asan tsan \
        cover mutants fuzz fuzz-all bench bench-engine bench-claims format format-check lint check-headers config clean FORCE
all: $(B)/bin/photon-server $(B)/bin/photon-client $(B)/bin/photon $(PLUGIN)
engine: $(ENGINE_TESTS) $(B)/tests/bench/bench_engine $(PLUGIN)

# Rebuild when the flags change, not only when a file does.
stamp = mkdir -p $(@D) && { echo '$(1)' | cmp -s - $@ || echo '$(1)' > $@; }
$(B)/flags: FORCE
	@$(call stamp,$(CC) $(CFLAGS) $(DNNL))
$(B)/nvflags: FORCE
	@$(call stamp,$(NVCC) $(NVCCFLAGS) $(NVARCH))
FORCE:

# Without OpenMP's pragmas the engine still gives the same bits, on one thread.
$(B)/kernels/cpu/%.c.o: CFLAGS += -O3 -fno-math-errno $(or $(OPENMP),-Wno-unknown-pragmas)
$(B)/client/model%.c.o $(B)/client/trainer%.c.o $(B)/server/aggregate%.c.o $(B)/common/codec%.c.o: CFLAGS += -O3
$(B)/%.c.o: %.c $(B)/flags
	@mkdir -p $(@D)
	$(if $(V),,@echo '  CC   $<')
	$(Q)$(CC) $(CFLAGS) -MMD -MP -c $< -o $@

# What the program carries of other files, and which commit it is of.
COMMIT := $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
$(B)/commit: FORCE
	@$(call stamp,$(COMMIT))
$(B)/server/api_misc.c.o: $(B)/commit
$(B)/server/api_misc.c.o: CFLAGS += -DPHOTON_COMMIT='"$(COMMIT)"'
$(B)/server/openapi.c.o: docs/openapi.json

$(B)/kernels/cuda/step.cu.o $(B)/kernels/cuda/codec.cu.o: NVCCFLAGS += -fmad=false
HOPPER := $(call objs,$(wildcard kernels/cuda/attn_wgmma*.cu))
$(HOPPER) $(B)/kernels/cuda/attn.cu.o: NVCCFLAGS += -Xptxas -Werror,-warn-spills,-warn-lmem-usage
$(HOPPER): NVARCH := -gencode arch=compute_90a,code=sm_90a
$(B)/%.cu.o: %.cu $(B)/nvflags
	@mkdir -p $(@D)
	$(if $(V),,@echo '  NVCC $<')
	$(Q)$(NVCC) $(NVCCFLAGS) $(NVARCH) -MMD -MP -MF $(@:.o=.d) -c $< -o $@ 2>$(@:.o=.notes) || { cat $(@:.o=.notes) >&2; exit 1; }
	@cat $(@:.o=.notes) >&2; ! grep -q '(C75' $(@:.o=.notes) || { rm -f $@; exit 1; }

$(B)/lib/photon-cuda.so: $(call objs,$(wildcard kernels/cuda/*.cu))
	@mkdir -p $(@D)
	$(if $(V),,@echo '  LINK $@')
	$(Q)$(NVCC) -shared $^ $(LIBS_cuda) -Xlinker --exclude-libs=ALL -o $@

EMULFLAGS := -std=c++20 -O2 -g -U_FORTIFY_SOURCE -ffp-contract=off -fno-strict-aliasing -I. -Wall -Wextra \
             -Wno-unknown-pragmas $(if $(WERROR),-Werror) -include tests/support/cuda_emul.hpp -x c++
EMUL_OBJS := $(patsubst %,$(B)/emulated/%.o,$(filter-out %/gemm_lt.cu,$(wildcard kernels/cuda/*.cu)) $(wildcard tests/support/cuda_emul*.cpp))
$(EMUL_OBJS): $(B)/emulated/%.o: %
	@mkdir -p $(@D)
	$(if $(V),,@echo '  CXX  $<')
	$(Q)$(CXX) $(EMULFLAGS) -MMD -MP -c $< -o $@

$(B)/lib%.a:
	@mkdir -p $(@D)
	$(Q)rm -f $@ && $(AR) rcs $@ $^
$(B)/libcommon.a:  $(call objs,$(COMMON))
$(B)/libkernels.a: $(call objs,$(KERNELS))
$(B)/libformats.a: $(call objs,$(FORMATS))
$(B)/libengine.a:  $(call objs,$(ENGINE))
$(B)/libclient.a:  $(call objs,$(CLIENT))
$(B)/libserver.a:  $(call objs,$(SERVER))

link = $(if $(V),,@echo '  LINK $@' &&) mkdir -p $(@D) && \
       $(CC) $(LDFLAGS) $(filter %.o,$^) $(filter %.a,$^) $(1) -o $@

# The order of the archives is the order in which modules may depend on each other.
ENGINE_LIBS := $(B)/libengine.a $(B)/libkernels.a $(B)/libcommon.a
CLIENT_LIBS := $(B)/libclient.a $(B)/libformats.a $(ENGINE_LIBS)
SERVER_LIBS := $(B)/libserver.a $(B)/libformats.a $(B)/libcommon.a
KIT         := $(B)/tests/support/check.c.o

$(B)/bin/photon-server: $(B)/server/main.c.o $(SERVER_LIBS)
	$(call link,$(LIBS_server))
$(B)/bin/photon-client: $(B)/client/main.c.o $(CLIENT_LIBS)
	$(call link,$(LIBS_client) $(LIBS_engine))
# The simulation takes the aggregator's pure core: of the archive, only what that needs.
$(B)/bin/photon: $(call objs,$(wildcard client/cli/*.c)) $(B)/libserver.a $(CLIENT_LIBS)
	$(call link,$(LIBS_client) $(LIBS_engine))
$(B)/tests/bench/bench_engine: $(B)/tests/bench/rates.c.o
$(filter-out $(EMULATED),$(ENGINE_TESTS)) $(B)/tests/bench/bench_engine: %: %.c.o $(KIT) $(ENGINE_LIBS)
	$(call link,$(LIBS_engine))
$(B)/tests/kernels/test_cuda $(B)/tests/kernels/test_cpu $(EMULATED): \
  $(patsubst %,$(B)/tests/support/op_%.c.o,kit parity_layers parity_step parity_code)
$(EMULATED): %: %.c.o $(KIT) $(EMUL_OBJS) $(ENGINE_LIBS)
	$(call link,$(LIBS_engine) -lstdc++ $(if $(findstring steps,$@),-Wl$(comma)--wrap=backend_open))
$(UNIT_TESTS): %: %.c.o $(KIT) $(B)/libserver.a $(CLIENT_LIBS)
	$(call link,$(LIBS_server) $(LIBS_client) $(LIBS_engine))
$(B)/tests/fault/test_sim_rounds: $(patsubst %,$(B)/tests/support/sim_%.c.o,store rounds check world queue)
$(FAULT_TESTS): %: %.c.o $(KIT) $(B)/tests/support/fake_pq.c.o $(SERVER_LIBS)
	$(call link,$(filter-out -lpq,$(LIBS_server)))
# In libFuzzer's own variant everything is instrumented, and its main() chooses the inputs.
PLAY := $(if $(filter fuzz,$(VARIANT)),,$(B)/tests/fuzz/play.c.o)
$(FUZZERS): %: %.c.o $(PLAY) $(B)/libserver.a $(CLIENT_LIBS)
	$(call link,$(if $(PLAY),,-fsanitize=fuzzer )$(LIBS_server) $(LIBS_client) $(LIBS_engine))
STORE_TESTS := $(patsubst %.c,$(B)/%,$(wildcard tests/store/test_*.c))
$(STORE_TESTS): %: %.c.o $(KIT) $(SERVER_LIBS)
	$(call link,$(LIBS_server))
# It stands in front of other programs' calls, so it has none of the project's own parts.
$(B)/tests/fault/shim.so: tests/fault/shim.c $(B)/flags
	@mkdir -p $(@D)
	$(if $(V),,@echo '  LINK $@')
	$(Q)$(CC) -std=c11 -D_GNU_SOURCE -O2 -g -fPIC -shared -Wall -Wextra $(if $(WERROR),-Werror) $< -ldl -o $@
$(B)/tests/fault/proxy: %: %.c.o $(B)/libcommon.a
	$(call link,-lm -lpthread)
$(B)/tests/fault/send_update: %: %.c.o $(CLIENT_LIBS)
	$(call link,$(LIBS_client) $(LIBS_engine) -Wl$(comma)--wrap=transport_chunk)

# npm only fetches what the lockfile pins; the page loads the files as they are. Without npm or a
# network the page shows tables where it would draw, so that is said and is no error.
UPLOT := web/vendor/uplot-1.6.32
web: $(UPLOT)/uPlot.esm.js
$(UPLOT)/uPlot.esm.js: web/package-lock.json
	@if npm ci --prefix web --ignore-scripts --no-audit --no-fund --loglevel=error; then \
	  mkdir -p $(@D) && cp web/node_modules/uplot/dist/uPlot.esm.js \
	    web/node_modules/uplot/dist/uPlot.min.css web/node_modules/uplot/LICENSE $(@D)/ && touch $@; \
	else echo 'make web: uPlot was not fetched; the dashboard will show tables instead of curves'; fi

# ---- what people type ----------------------------------------------------------------
help:
	@sed -n '4,/^$$/s/^# \{0,1\}//p' Makefile
# Programs, page and migrations where the programs look for them; then the units of docs/systemd.
PREFIX ?= /usr/local
install: all web
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib $(DESTDIR)$(PREFIX)/share/photon/sql
	install $(B)/bin/photon-server $(B)/bin/photon-client $(B)/bin/photon $(DESTDIR)$(PREFIX)/bin
	$(if $(PLUGIN),install -m 644 $(PLUGIN) $(DESTDIR)$(PREFIX)/lib)
	rm -f $(DESTDIR)$(PREFIX)/share/photon/sql/*.sql
	install -m 644 sql/*.sql $(DESTDIR)$(PREFIX)/share/photon/sql
	rm -rf $(DESTDIR)$(PREFIX)/share/photon/web
	install -d $(DESTDIR)$(PREFIX)/share/photon/web
	install -m 644 web/*.html web/*.css web/*.js web/*.svg $(DESTDIR)$(PREFIX)/share/photon/web
	[ ! -d web/vendor ] || cp -r web/vendor $(DESTDIR)$(PREFIX)/share/photon/web
# On all cores, unless the person said how many. Recipes call it with a plus: make sees its own name in their text alone,
# and else keeps its helpers to itself, so that a make in a make would compile one file at a time.
SUBMAKE = $(MAKE) --no-print-directory $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(shell nproc))
# What deps installs is detected when make starts: hence a second make, after it.
deps:
	@./deps.sh
DEMO := $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(EXIT),--exit) $(if $(PORT),--port $(PORT)) \
        $(if $(STATE),--state $(STATE)) $(if $(DATA),--data $(DATA)) $(if $(SILOS),--silos $(SILOS))
demo: deps
	@+$(SUBMAKE) all web
	@$(B)/bin/photon demo $(DEMO)
# Where the demo keeps itself: see README.md; a demo that runs is not pulled from under itself.
DEMO_DIRS := $(or $(STATE),photon-demo $(if $(filter 0,$(shell id -u)),/var/lib/photon-demo))
demo-clean:
	@for d in $(DEMO_DIRS); do [ ! -d "$$d" ] || { \
	  flock -n "$$d/lock" true || { echo "a demo runs in $$d; end it first"; exit 1; }; \
	  echo "rm -rf $$d" && rm -rf "$$d"; } || exit 1; done
test:
	@./deps.sh --test
	@+$(SUBMAKE) test-all
check:
	@./deps.sh --dev
	@+$(SUBMAKE) WERROR=1 check-all
check-all: format-check lint test-all asan

# Each harness of the fault rig is one line here: quick within `make test`; with LONG=1 the counts of
# docs/TESTING.md. The programs with failpoints awake are a variant of their own.
RIG := build/fault/bin/photon-server build/fault/bin/photon-client
.PHONY: rig-programs test-fault
rig-programs:
	@+$(SUBMAKE) VARIANT=fault $(RIG)
SIMULATED = fault '$(if $(LONG),SIM_SEEDS=100000 )$(LOW) tests/run.sh $(FAULT_TESTS)'
RIG_MODES = kills points power nth two race
# half a minute or more, and as root alone
test-fault: RIG_MODES += disk
FAULT_SUITES = \
  proxy 'python3 -B tests/fault/proxy.py $(B)' -- \
  transfer 'python3 -B tests/fault/transfer.py $(B) $(if $(LONG),--uploads 500 --mib 256 --silos 4,--silos 3 --cuts 6)' -- \
  hostile 'tests/support/pg_temp.sh python3 -B tests/fault/hostile.py $(B) $(if $(LONG),--flips 10000 --updates 1400,--flips 150 --updates 60)' -- \
  rig 'python3 -B tests/fault/rig.py $(if $(LONG),--long )$(if $(SEED),--seed $(SEED) )$(RIG_MODES)' -- \
  flipped 'python3 -B tests/fault/flipped.py $(B) --trials $(if $(LONG),600,15)'
test-fault: all $(FAULT_TESTS) $(FAULT_TOOLS) rig-programs
	@tests/all.sh $(SIMULATED) -- $(FAULT_SUITES) -- restore 'tests/e2e/run.sh $(B) restore'

# Three lanes wait most of the time; the fourth computes when they leave it a processor.
LOW := nice -n 19
test-all: all web rig-programs $(C_TESTS) $(FAULT_TOOLS) $(STORE_TESTS)
	@tests/all.sh api 'tests/api/run.sh $(B) first' -- schema 'tests/support/pg_temp.sh tests/api/schema.sh' -- \
	  programs 'tests/e2e/run.sh $(B) programs' -- store 'tests/store/run.sh $(STORE_TESTS)' -- \
	  policies 'tests/e2e/run.sh $(B) policies' -- e2e 'tests/e2e/run.sh $(B) loop' -- \
	  sim 'tests/e2e/run.sh $(B) sim' \
	  beside page 'tests/web/page/run.sh $(B)' -- web 'tests/web/run.sh $(wildcard tests/web/*.test.mjs)' -- \
	  $(FAULT_SUITES) \
	  beside api2 'tests/api/run.sh $(B) second' -- unit 'tests/run.sh $(UNIT_TESTS)' \
	  beside engine '$(LOW) tests/run.sh $(ENGINE_TESTS)' -- $(SIMULATED) -- fuzz '$(LOW) tests/run.sh $(FUZZERS)' -- \
	  oracle '$(LOW) tests/oracle/run.sh $(B)' \
	  then speed 'tests/web/page/run.sh $(B) tests/web/page/speed.time.mjs' -- \
	  load 'python3 -B tests/fault/load.py $(B) quick'
test-c: $(C_TESTS) $(PLUGIN)
	@tests/run.sh $(C_TESTS)
test-engine: engine
	@tests/run.sh $(ENGINE_TESTS)
# For a machine with a GPU, on which gcc and CUDA are enough: the engine's tests with the device
# required, its kernels under compute-sanitizer where that is installed, the speeds, beside PyTorch
# where there is one, and where the server's libraries are too, a federation. ONLY=engine, tools,
# bench or federation takes that part; SIZES, ROUNDS and TORCH are of tests/bench/gpu.sh. A program that
# hangs is ended after TEST_LIMIT_S. Hopper's attention is tried first, by itself: a fault ends a process.
GPU_TESTS := $(patsubst %,$(B)/tests/kernels/test_%,cuda model trainer steps coder ranks ref)
GPU_RUNS  := '$(B)/tests/kernels/test_cuda hopper' '$(B)/tests/kernels/test_cuda all' $(filter-out %/test_cuda,$(GPU_TESTS))
SERVED     = $(shell $(PKG_CONFIG) --exists libpq libmicrohttpd gnutls libcjson libcrypto libcurl && echo yes)
gpu_part   = $(if $(or $(if $(ONLY),,all),$(filter $(1),$(ONLY))),$(1) "$(2)" --)
check-gpu:
	@test -n '$(PLUGIN)' || { echo 'make check-gpu: no nvcc with cuBLASLt here (CUDA=$(CUDA))'; exit 1; }
	@+$(SUBMAKE) $(GPU_TESTS) $(B)/tests/bench/bench_engine $(PLUGIN) $(if $(SERVED),all)
	@PHOTON_REQUIRE_CUDA=1 TEST_LIMIT_S=$${TEST_LIMIT_S:-300} tests/all.sh $(call gpu_part,engine,tests/run.sh $(GPU_RUNS)) \
	  $(call gpu_part,tools,tests/gpu_tools.sh $(B)/tests/kernels/test_cuda) \
	  $(call gpu_part,bench,tests/bench/gpu.sh $(B)/tests/bench/bench_engine) \
	  $(call gpu_part,federation,$(if $(SERVED),tests/e2e/run.sh $(B) gpu,echo skipped: the libraries of the server are not here; echo '0 passed$(comma) 0 failed$(comma) 1 skipped'))
test-schema:
	@tests/support/pg_temp.sh tests/api/schema.sh
test-store: $(STORE_TESTS)
	@tests/store/run.sh $(STORE_TESTS)
test-api: all $(B)/tests/fault/shim.so
	@tests/api/run.sh $(B)
test-web: web
	@tests/web/run.sh $(wildcard tests/web/*.test.mjs)
test-page: all web
	@tests/web/page/run.sh $(B)
	@tests/web/page/run.sh $(B) tests/web/page/speed.time.mjs
# A thousand silos and as many hostile connections: minutes, best on a quiet machine.
test-load: all
	@python3 -B tests/fault/load.py $(B)
test-e2e: all rig-programs
	@tests/all.sh programs 'tests/e2e/run.sh $(B) programs' -- sim 'tests/e2e/run.sh $(B) sim' -- \
	  e2e 'tests/e2e/run.sh $(B) loop' -- policies 'tests/e2e/run.sh $(B) policies' -- \
	  restore 'tests/e2e/run.sh $(B) restore'
asan tsan:
	@+$(SUBMAKE) VARIANT=$@ test-c
cover:
	@$(MAKE) --no-print-directory VARIANT=cover test-c
	@tests/cover.sh build/cover

# Do the tests see the bugs that tests/mutants/list.sh plants? BUG= takes those alone with that word.
mutants: all
	@BUILD=$(B) tests/mutants/run.sh "$(BUG)"

BENCHES := $(patsubst %.c,$(B)/%,$(filter-out %/bench_engine.c,$(wildcard tests/bench/bench_*.c)))
$(BENCHES): %: %.c.o $(KIT) $(SERVER_LIBS)
	$(call link,$(LIBS_server))
bench: all bench-engine $(BENCHES) $(B)/tests/fault/send_update
	@$(B)/tests/bench/bench_codec
	@$(if $(wildcard tests/bench/bench_aggregate.c),$(B)/tests/bench/bench_aggregate)
	@python3 -B tests/bench/bench_system.py $(B)
	@python3 -B tests/bench/bench_system.py $(B) durable
bench-engine: $(B)/tests/bench/bench_engine $(PLUGIN)
	@OMP_WAIT_POLICY=passive $<
	@if [ -n '$(PLUGIN)' ] && nvidia-smi -L >/dev/null 2>&1; then tests/bench/gpu.sh $<; fi
# The paper's claims on real text, DATA=folder with a .txt or .jsonl(.gz) per kind; docs/RESULTS.md
# is what it writes. SIZE=h100 takes the preset for a GPU, ONLY=03 one claim, SWEEP=1 the rates alone.
bench-claims: all
	@python3 -B tests/bench/claims.py $(B) --data '$(DATA)' --out docs $(if $(SIZE),--size $(SIZE)) \
	  $(if $(ONLY),--only $(ONLY)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(SWEEP),--sweep) $(if $(JOBS),--jobs $(JOBS)) \
	  $(if $(TOKENIZER),--tokenizer $(TOKENIZER))

fuzz:
	@+$(SUBMAKE) VARIANT=fuzz CC=$(CLANG) fuzz-all
fuzz-all: $(FUZZERS)
	@tests/fuzz/run.sh $(FUZZ_S) $(FUZZERS)

format:
	@clang-format -i $(C_FILES)
format-check:
	@clang-format --dry-run --Werror $(C_FILES)
# Every header must compile on its own: it names what it uses.
check-headers:
	@for h in $(C_HEADERS); do $(CC) $(BASE) $(WARN) -Werror $(INC) -fsyntax-only -x c $$h || exit 1; done
lint: check-headers $(PLUGIN)
	shellcheck *.sh tests/*.sh tests/*/*.sh
	tests/lint/includes.sh
	tests/lint/codes.sh
	tests/lint/mutants.sh
	@tests/lint/size.sh
	cppcheck --quiet --error-exitcode=1 --std=c11 --inline-suppr --suppress=missingIncludeSystem \
	  --enable=warning,performance,portability -I. common server client kernels

config:
	@printf '%s\n' 'CC     $(CC)' 'NVCC   $(or $(NVCC),none)' 'CUDA   $(CUDA), sm $(SM)' 'DNNL   $(DNNL)' \
	  'CFLAGS $(CFLAGS)'
clean:
	rm -rf build web/node_modules web/vendor tests/web/node_modules

-include $(shell find $(B) -name '*.d' 2>/dev/null)
