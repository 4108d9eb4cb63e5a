/*
 * math_poly.h - exp2, exp and erf in fp32 as polynomials, one set of coefficients for all backends.
 *
 * libm's functions are neither vectorised without -ffast-math nor the same on every machine. These
 * are written over POLY_FMA, so that host vectors (kernels/cpu/simd.h) and device code can use the
 * same coefficients with a real fused multiply-add; with it each is within 2 ulp, without it
 * within 3. What is for results in bf16 alone is shorter, and says how exact it is.
 */
#ifndef KERNELS_MATH_POLY_H
#define KERNELS_MATH_POLY_H

/* 2^f on [-1/2, 1/2] is the sum of these times f^i (Cephes, exp2f). */
#define POLY_EXP2_1 6.931472028550421e-1f
#define POLY_EXP2_2 2.402264791363012e-1f
#define POLY_EXP2_3 5.550332471162809e-2f
#define POLY_EXP2_4 9.618437357674640e-3f
#define POLY_EXP2_5 1.339887440266574e-3f
#define POLY_EXP2_6 1.535336188319500e-4f

/* e^x = 2^n e^f with f = x - n ln 2, ln 2 in two pieces so that n times the first is exact. */
#define POLY_LOG2E  1.4426950408889634f
#define POLY_LN2_HI 6.93145752e-1f
#define POLY_LN2_LO 1.42860677e-6f
#define POLY_EXP_2  4.99999851e-1f
#define POLY_EXP_3  1.66664720e-1f
#define POLY_EXP_4  4.16695364e-2f
#define POLY_EXP_5  8.37312452e-3f
#define POLY_EXP_6  1.37805939e-3f

/*
 * erf, for |x| below the border x + x P(x^2), above it 1 - exp(Q(|x|)); minimax on either side.
 * The border is where both have the same error.
 */
#define POLY_ERF_BORDER 0.927734375f
#define POLY_ERF_P0     1.28379166e-1f
#define POLY_ERF_P1     -3.76125336e-1f
#define POLY_ERF_P2     1.12819925e-1f
#define POLY_ERF_P3     -2.67681349e-2f
#define POLY_ERF_P4     4.99119423e-3f
#define POLY_ERF_P5     -5.96761703e-4f
#define POLY_ERF_Q1     -1.28717512e-1f /* besides the -|x| that is added unrounded */
#define POLY_ERF_Q2     -6.34846687e-1f
#define POLY_ERF_Q3     -1.06777877e-1f
#define POLY_ERF_Q4     2.42546219e-2f
#define POLY_ERF_Q5     -3.88396438e-3f
#define POLY_ERF_Q6     3.83197126e-4f
#define POLY_ERF_Q7     -1.72853470e-5f

/*
 * GELU where the result is rounded to bf16. The tail Phi(-t) of the normal distribution, t >= 0, is
 * 2^T(t), and Phi(-t) - t phi(t), the slope of h Phi(h) at -t, is (ZERO - t) S(t) Phi(-t): phi /
 * Phi is smooth, so nothing needs a second exponential. Minimax on [0, 5.5], 2^T and S within
 * 7e-6; beyond, what is left is less than 1e-6, and at FAR it is zero in fp32. Take the smaller of
 * t and FAR.
 */
#define POLY_TAIL_FAR  16.0f
#define POLY_TAIL_T0   -9.99995465e-1f
#define POLY_TAIL_T1   -1.15124684e+0f
#define POLY_TAIL_T2   -4.58480506e-1f
#define POLY_TAIL_T3   -5.39378481e-2f
#define POLY_TAIL_T4   8.49375832e-3f
#define POLY_TAIL_T5   -9.26029277e-4f
#define POLY_TAIL_T6   6.09042036e-5f
#define POLY_TAIL_T7   -1.79345661e-6f
#define POLY_TAIL_ZERO 7.51791525e-1f
#define POLY_TAIL_S0   1.33016509e+0f
#define POLY_TAIL_S1   7.07714673e-1f
#define POLY_TAIL_S2   9.63880532e-2f
#define POLY_TAIL_S3   -2.13610561e-2f
#define POLY_TAIL_S4   3.03098638e-3f
#define POLY_TAIL_S5   -2.45200424e-4f
#define POLY_TAIL_S6   8.48424569e-6f

/* 2^f on [-1/2, 1/2] within 3e-6, for the same use. */
#define POLY_EXP2_SHORT_0 9.99999260e-1f
#define POLY_EXP2_SHORT_1 6.93121810e-1f
#define POLY_EXP2_SHORT_2 2.40247450e-1f
#define POLY_EXP2_SHORT_3 5.59178600e-2f
#define POLY_EXP2_SHORT_4 9.57010000e-3f

#define POLY_SQRT_HALF     7.07106781e-1f /* 1 / sqrt(2)    */
#define POLY_INV_SQRT_2PI  3.98942280e-1f /* 1 / sqrt(2 pi) */
#define POLY_EXP2_SMALLEST -160.0f /* 2 to this is zero in fp32, and so is everything below */
#define POLY_EXP2_LARGEST  160.0f

#endif
