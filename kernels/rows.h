/* What few_rows.c, decode.c and modulated.c are made of: products, norms and activations on rows of
   numbers, for several threads that meet at barriers. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(INT8) && defined(__AVX2__)
#include <immintrin.h>  /* only here: it takes a fifth of the compiler's time */
#endif
#ifdef _OPENMP
#include <omp.h>
#define BARRIER _Pragma("omp barrier")
const int has_threads = 1;
#else
#define BARRIER
const int has_threads = 0;
#endif
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif
#define INLINE static inline __attribute__((always_inline))

/* -------------------------------------------------------------------------------------------- */
/* Vectors of V floats; a tile of OUTS outputs by ROWS rows, whose sums fill the registers */

enum {
    OUTS = 4,
    COLUMNS = 512,  /* of x at a time, at most */
    CACHE = 6144,   /* how many numbers of x stay in the first-level cache */
};

#if defined(__AVX512F__)
enum { V = 16, ROWS = 6 };
#elif defined(__AVX2__) && defined(__FMA__)
enum { V = 8, ROWS = 3 };
#elif defined(__x86_64__) || defined(__i386__)
#error "without AVX2 and FMA torch's own operations are faster"
#else
enum { V = 4, ROWS = 4 };
#endif
typedef float vec __attribute__((vector_size(4 * V), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * V), aligned(4), may_alias));
typedef uint32_t bits __attribute__((vector_size(4 * V)));
typedef uint16_t halves __attribute__((vector_size(2 * V), aligned(2), may_alias));
#define AT(pointer) (*(vec *)(pointer))

#ifdef __x86_64__  /* by itself the compiler runs out of registers and keeps a sum in memory */
#define ADD_PRODUCT(sum, a, b) __asm__("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b))
#else
#define ADD_PRODUCT(sum, a, b) sum += (a) * (b)
#endif

typedef float quad __attribute__((vector_size(16), aligned(4), may_alias));
#ifdef __clang__
#define MIX __builtin_shufflevector
#else
typedef int32_t places __attribute__((vector_size(16)));
#define MIX(a, b, ...) __builtin_shuffle(a, b, (places){__VA_ARGS__})
#endif

INLINE quad quarters(vec x) {
    quad q[V / 4];
    memcpy(q, &x, sizeof q);
    for (int i = 1; i < V / 4; i++) q[0] += q[i];
    return q[0];
}

INLINE float total(vec x) {
    quad q = quarters(x);
    return (q[0] + q[1]) + (q[2] + q[3]);
}

/* The totals of four vectors at once */
INLINE quad totals(vec x0, vec x1, vec x2, vec x3) {
    quad a = quarters(x0), b = quarters(x1), c = quarters(x2), d = quarters(x3);
    a = MIX(a, b, 0, 4, 1, 5) + MIX(a, b, 2, 6, 3, 7);  /* a0 + a2, b0 + b2, a1 + a3, b1 + b3 */
    c = MIX(c, d, 0, 4, 1, 5) + MIX(c, d, 2, 6, 3, 7);
    return MIX(a, c, 0, 1, 4, 5) + MIX(a, c, 2, 3, 6, 7);
}

#ifdef INT8
typedef int8_t weight;

INLINE vec load(const weight *w) {
#if defined(__AVX512F__)
    return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)w)));
#elif defined(__AVX2__)
    return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)w)));
#else
    vec x;
    for (int i = 0; i < V; i++) x[i] = w[i];
    return x;
#endif
}
#elif defined(BF16)
typedef uint16_t weight;  /* the upper half of a float32 */

INLINE vec load(const weight *w) {
    return (vec)(__builtin_convertvector(*(const halves *)w, bits) << 16);
}
#else
typedef float weight;

INLINE vec load(const weight *w) { return AT(w); }
#endif

/* V numbers of either type; fewer at the end of a row */
INLINE vec take(const void *x, int bf16, int64_t at, int64_t count) {
    if (bf16) {
        halves h = {0};
        if (count >= V) h = *(const halves *)((const uint16_t *)x + at);
        else memcpy(&h, (const uint16_t *)x + at, 2 * count);
        return (vec)(__builtin_convertvector(h, bits) << 16);
    }
    vec v = {0};
    if (count >= V) return AT((const float *)x + at);
    memcpy(&v, (const float *)x + at, 4 * count);
    return v;
}

INLINE void put(vec v, void *y, int bf16, int64_t at, int64_t count) {
    if (bf16) {  /* rounded to the nearest, ties to even */
        bits b = (bits)v, nan = (bits)(v != v);
        b = ((b + 0x7FFF + (b >> 16 & 1)) & ~nan) | ((b | 0x400000) & nan);
        halves h = __builtin_convertvector(b >> 16, halves);
        if (count >= V) *(halves *)((uint16_t *)y + at) = h;
        else memcpy((uint16_t *)y + at, &h, 2 * count);
    } else if (count >= V) AT((float *)y + at) = v;
    else memcpy((float *)y + at, &v, 4 * count);
}

INLINE float dot(const float *a, const float *b, int size) {
    vec s = {0};
    int i = 0;
    for (; i + V <= size; i += V) s += AT(a + i) * AT(b + i);
    float rest = 0;
    for (; i < size; i++) rest += a[i] * b[i];
    return total(s) + rest;
}

/* e^x to 2e-7 relative: 2^n times a polynomial (Taylor's, degree 7) on [-ln 2 / 2, ln 2 / 2]. 0
   below -50: everywhere here it is then added to a larger number, and what is made of it could be
   too small for normal floats, with which processors are a hundred times slower. */
INLINE vec exponential(vec x) {
    ivec low = x < -50.0f, high = x > 87.0f;
    ivec most = (ivec)((vec){0} + 87.0f);
    x = (vec)(((ivec)x & ~(low | high)) | (most & high));
    vec n = x * 1.4426950409f + 12582912.0f;  /* 1.5 * 2^23: the sum has no room for a fraction */
    n -= 12582912.0f;
    vec r = x - n * 0.693145752f - n * 1.42860677e-6f, p = r * (1.0f / 5040) + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    p *= (vec)((__builtin_convertvector(n, ivec) + 127) << 23);
    return (vec)((ivec)p & ~low);
}

enum { GELU, RELU, QUICK_GELU };

INLINE vec activated(vec z, int kind) {
    if (kind == RELU) return (vec)((ivec)z & ~(z <= 0.0f));  /* NaN stays NaN */
    if (kind == QUICK_GELU) return z / (1.0f + exponential(-1.702f * z));
    /* GELU by erf to 1.5e-7 (Abramowitz and Stegun, 7.1.26) */
    ivec sign = (ivec)z & INT32_MIN;
    vec a = (vec)((ivec)z ^ sign) * 0.70710678f;
    vec t = 1.0f / (1.0f + 0.3275911f * a);
    vec p = 1.061405429f * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    vec erf = 1.0f - p * t * exponential(-a * a);
    return 0.5f * z * (1.0f + (vec)((ivec)erf ^ sign));
}

/* -------------------------------------------------------------------------------------------- */
/* What a layer is made of */

/* w (out, in), b (out,), and for int8 scale (out,) */
typedef struct { const weight *w; const float *scale, *b; } Linear;
typedef struct { const float *w, *b; } Norm;
typedef struct { int number, count; } Thread;

/* Where the share of thread `number` begins, in whole vectors */
INLINE int share(int size, int number, int count) {
    return (int)((long)(size / V) * number / count) * V;
}

/* `rows` rows of x (.., X) times OUTS rows of W, `stride` apart, over K of their numbers. y (.., Y)
   gets the sums plus b; where b is null, they are added to it. `ahead`: how far the weights are
   prefetched. The number of rows is a constant once inlined, so their sums fill the registers. */
INLINE void tile(const float *x, int X, int K, const weight *w, long stride, long ahead,
                 const float *scale, const float *b, float *y, int Y, int rows) {
    vec sum[OUTS][ROWS];
    UNROLL for (int o = 0; o < OUTS; o++)
        UNROLL for (int m = 0; m < rows; m++) sum[o][m] = (vec){0};
    for (int k = 0; k < K; k += 16) {
        if (k * sizeof(weight) % 64 == 0)
            UNROLL for (int o = 0; o < OUTS; o++) __builtin_prefetch(w + o * stride + k + ahead);
        UNROLL for (int i = 0; i < 16; i += V) {
            vec in[ROWS];
            UNROLL for (int m = 0; m < rows; m++) in[m] = AT(x + (long)m * X + k + i);
            UNROLL for (int o = 0; o < OUTS; o++) {
                vec v = load(w + o * stride + k + i);
                UNROLL for (int m = 0; m < rows; m++) ADD_PRODUCT(sum[o][m], v, in[m]);
            }
        }
    }
    UNROLL for (int m = 0; m < rows; m++) {
        quad s = totals(sum[0][m], sum[1][m], sum[2][m], sum[3][m]);
        quad *to = (quad *)(y + (long)m * Y);
        if (scale) s *= *(const quad *)scale;
        *to = s + (b ? *(const quad *)b : *to);
    }
}

/* This thread's share of y (M, N) = x (M, K) W^T + b, or with `add` of y += x W^T. Rows of x and y
   lie X and Y apart; rows of W lie `stride` apart, and each is taken from `offset` on. Works on as
   many rows and columns of x at a time as stay in the first-level cache while W passes by. */
static void linear(const float *x, int X, int M, int K, const Linear *l, int stride, int offset,
                   float *y, int Y, int N, int add, Thread t) {
    int parts = (K + COLUMNS - 1) / COLUMNS, part = (K / 16 + parts - 1) / parts * 16;
    int block = CACHE / part / ROWS * ROWS;
    /* rows of W so far apart that the next outputs' weights would push out those in use */
    int crowded = M > block && stride * sizeof(weight) % 4096 == 0;
    long ahead = crowded ? 64 : (long)OUTS * stride;
    /* The tiles' arguments are spelled out in CASE: with names for them, gcc 12's code takes a
       fifth longer at 96 rows. */
    for (int top = 0; top < M; top += block)
        for (int k = 0; k < K; k += part)
            for (int n = share(N, t.number, t.count); n < share(N, t.number + 1, t.count);
                 n += OUTS)
                for (int m = top, rows, end = top + block < M ? top + block : M; m < end;
                     m += rows) {
                    int tiles = (end - m + ROWS - 1) / ROWS;  /* still to come, of even sizes */
                    rows = (end - m + tiles - 1) / tiles;
#define CASE(R) case R: \
    if (R <= ROWS) tile(x + (long)m * X + k, X, k + part < K ? part : K - k, \
        l->w + (long)n * stride + offset + k, stride, ahead, l->scale ? l->scale + n : NULL, \
        add || k ? NULL : l->b + n, y + (long)m * Y + n, Y, R); break;
                    switch (rows) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) }
                }
}

/* y = x, or x + a, for a row of D numbers, normalised where there is a norm. The sum itself goes to
   s where that is not null. */
static void add_norm(const float *x, const float *a, float *s, const Norm *norm, float eps,
                     float *y, int D) {
    vec sum = {0}, square = {0};
    for (int d = 0; d < D; d += V) {
        vec v = AT(x + d);
        if (a) v += AT(a + d);
        if (s) AT(s + d) = v;
        AT(y + d) = v;
        sum += v;
    }
    if (!norm) return;
    float mean = total(sum) / D;
    for (int d = 0; d < D; d += V) square += (AT(y + d) - mean) * (AT(y + d) - mean);
    float by = 1 / sqrtf(total(square) / D + eps);
    for (int d = 0; d < D; d += V)
        AT(y + d) = (AT(y + d) - mean) * by * AT(norm->w + d) + AT(norm->b + d);
}

/* Each thread's own of n things */
#define EACH(i, n) for (int i = t.number; i < (n); i += t.count)
