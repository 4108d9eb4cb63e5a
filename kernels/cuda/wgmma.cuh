/*
 * wgmma.cuh - Hopper's own instructions (sm_90a), each behind one name: barriers in shared memory,
 * copies by the tensor memory accelerator, products of a warpgroup. device.cuh for what is older;
 * tests run the kernels over these names on a host as well.
 *
 * What has to be kept (PTX manual, "Asynchronous warpgroup level matrix instructions"):
 * products run behind the program. Between wgmma_fence() and the wgmma_wait() that covers them,
 * nobody touches their accumulators or their A in registers; shared memory they read is given back
 * after it. wgmma_fence() stands between any use of such registers and the next product.
 *
 * A barrier that is waited for longer than anything here can take ends the kernel with an error,
 * so that a mistake shows as one instead of as a device that hangs.
 */
#ifndef KERNELS_CUDA_WGMMA_CUH
#define KERNELS_CUDA_WGMMA_CUH

#include "kernels/cuda/device.cuh"

#ifndef CUDA_EMULATED
#include <cuda.h> // its types alone: the driver's library is not linked

typedef CUtensorMap tensor_map;

/* ---- barriers in shared memory ---- */

static __device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals)
                 : "memory");
}

/* By who initialised, before the block's threads meet: copies see the barriers too. */
static __device__ __forceinline__ void barriers_ready()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

static __device__ __forceinline__ void barrier_arrive(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/* Arrive, and let the phase last until copies have brought this many bytes as well. */
static __device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

static __device__ __forceinline__ bool barrier_try(uint32_t barrier, uint32_t parity)
{
    uint32_t over;
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.b32 %0, 1, 0, p;\n"
                 "}\n"
                 : "=r"(over)
                 : "r"(barrier), "r"(parity)
                 : "memory");
    return over != 0;
}

/* Until the phase of this parity is over. */
static __device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity)
{
    if (barrier_try(barrier, parity)) {
        return;
    }
    const long long LIMIT = 1LL << 35; // cycles: some 20 s
    const long long start = clock64();
    while (!barrier_try(barrier, parity)) {
        if (clock64() - start > LIMIT) {
            // Not __trap(), beside which nvcc 13 gives no warpgroup more registers than another.
            asm volatile("st.global.b32 [%0], %1;" ::"l"(0LL), "r"(0) : "memory");
        }
    }
}

/* ---- copies, by one thread ---- */

/* The box at (0, row, 0, head, batch) of a tensor map (tensor_map.cuh). */
static __device__ __forceinline__ void fetch_box(uint32_t tile, const tensor_map &map,
                                                 uint32_t barrier, int row, int head, int batch)
{
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%3, %4, %3, %5, %6}], [%2];" ::"r"(tile),
                 "l"(&map), "r"(barrier), "r"(0), "r"(row), "r"(head), "r"(batch)
                 : "memory");
}

/* A multiple of 16 bytes, both ends on one too. */
static __device__ __forceinline__ void fetch_bytes(uint32_t to, const void *from, uint32_t bytes,
                                                   uint32_t barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                 " [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(barrier)
                 : "memory");
}

/* ---- among threads ---- */

/* Barrier `id`, 1 .. 15, is met by those who wait and those who only come by: a multiple of 32. */
static __device__ __forceinline__ void turn_wait(uint32_t id, uint32_t threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

static __device__ __forceinline__ void turn_give(uint32_t id, uint32_t threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

static __device__ __forceinline__ void warp_meet()
{
    __syncwarp();
}

/* A value that is the same in all lanes, said so that the compiler knows. */
static __device__ __forceinline__ int same_in_warp(int v)
{
    return __shfl_sync(ALL_LANES, v, 0);
}

/* The whole warpgroup: registers per thread from here on. */
template <int N> static __device__ __forceinline__ void registers_fewer()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N> static __device__ __forceinline__ void registers_more()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

static __device__ __forceinline__ void shared_put(uint32_t at, int v)
{
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(v) : "memory");
}

static __device__ __forceinline__ int shared_get(uint32_t at)
{
    int v;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
    return v;
}

/* Two floats on a multiple of 8 bytes. */
static __device__ __forceinline__ void shared_get2(float v[2], uint32_t at)
{
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                 : "=f"(v[0]), "=f"(v[1])
                 : "r"(at)
                 : "memory");
}

/* ---- products of a warpgroup ---- */

static __device__ __forceinline__ void wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

/* The products since the last commit are a group. */
static __device__ __forceinline__ void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Until at most N groups are under way. */
template <int N> static __device__ __forceinline__ void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

/*
 * What `bits` is computed from is computed before the wait that follows this. ptxas knows nothing
 * of settle() and moves a wait ahead of all that does not need it, and nothing then runs beside the
 * product. A store that would need it keeps its place; it is never made, as the sign bit of `bits`
 * is 0. `address` is any of shared memory. (Seen in the machine code: MUFU.EX2 stand between the two
 * DEPBAR of a turn.)
 */
static __device__ __forceinline__ void compute_before_wait(uint32_t bits, uint32_t address)
{
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.lt.s32 p, %0, 0;\n"
                 "@p st.shared.b32 [%1], %0;\n"
                 "}\n" ::"r"(bits),
                 "r"(address)
                 : "memory");
}

/*
 * Before a fence: what is computed into these registers is there by then. After a wait: nothing is
 * read from accumulators before it, and the registers of an A are not used for anything else.
 */
template <int N> static __device__ __forceinline__ void settle(uint32_t (&a)[N][4])
{
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            asm volatile("" : "+r"(a[n][e])::"memory");
        }
    }
}

template <int N> static __device__ __forceinline__ void settle(float (&d)[N][4])
{
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            asm volatile("" : "+f"(d[n][e])::"memory");
        }
    }
}

// clang-format off
#define WG_D32 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
               "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}"
#define WG_D64 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
               "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
               "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
               "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}"
#define WG_ACC1(d, n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define WG_ACC4(d, n) WG_ACC1(d, n), WG_ACC1(d, n + 1), WG_ACC1(d, n + 2), WG_ACC1(d, n + 3)
#define WG_ACC8(d, n) WG_ACC4(d, n), WG_ACC4(d, n + 4)
// clang-format on

/*
 * d (64 x 8 N) = a b^T, or += where `add`: one step of 16 in depth, a and b both descriptors of
 * tiles read by rows. The last four operands: neither factor negated, neither read by columns.
 */
static __device__ __forceinline__ void wgmma_rows(float (&d)[8][4], uint64_t a, uint64_t b,
                                                  bool add)
{
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " WG_D32
                 ", %32, %33, p, 1, 1, 0, 0;\n"
                 "}\n"
                 : WG_ACC8(d, 0)
                 : "l"(a), "l"(b), "r"((int)add));
}

static __device__ __forceinline__ void wgmma_rows(float (&d)[16][4], uint64_t a, uint64_t b,
                                                  bool add)
{
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " WG_D64
                 ", %64, %65, p, 1, 1, 0, 0;\n"
                 "}\n"
                 : WG_ACC8(d, 0), WG_ACC8(d, 8)
                 : "l"(a), "l"(b), "r"((int)add));
}

/*
 * d (64 x 8 N) += a b: one step of 16 in depth, a in registers as attn_tile.h has it for mma, b the
 * descriptor of a tile read by columns. The last operands: neither negated, b by columns.
 */
static __device__ __forceinline__ void wgmma_add(float (&d)[8][4], const uint32_t (&a)[4],
                                                 uint64_t b)
{
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " WG_D32
                 ", {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n"
                 "}\n"
                 : WG_ACC8(d, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
}

static __device__ __forceinline__ void wgmma_add(float (&d)[16][4], const uint32_t (&a)[4],
                                                 uint64_t b)
{
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " WG_D64
                 ", {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n"
                 "}\n"
                 : WG_ACC8(d, 0), WG_ACC8(d, 8)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
}

#endif

#endif
