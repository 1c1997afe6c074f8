/* Dropout for training on a CPU, alone and behind a softmax; dropout.py builds it and calls it.

Nothing random is stored: whether a number stays depends on a seed, its row and its column, by the
same mixing function as in the Triton kernels, so both drop the same numbers. All matrices are
(R, C) and contiguous; the number of row 0 is `first`. What is dropped becomes 0, even NaN. */
#include "rows.h"

/* A seed; which of 2^24 equally likely numbers are dropped; the factor of those that stay */
typedef struct { uint64_t seed; int threshold; float factor; } Rule;

#define MIX_ALL(x) \
    x = (x ^ (x >> 16)) * 0x7FEB352Du; x = (x ^ (x >> 15)) * 0x846CA68Bu; x = x ^ (x >> 16)

static uint32_t row_key(uint64_t seed, uint64_t row) {
    uint32_t key = (uint32_t)row ^ (uint32_t)seed;
    MIX_ALL(key);
    key += (uint32_t)(seed >> 32);
    MIX_ALL(key);
    return key;
}

/* The columns 0, 1, ... V - 1, each times a constant that spreads them over 32 bits */
INLINE bits first_columns(void) {
    bits columns;
    for (int i = 0; i < V; i++) columns[i] = (uint32_t)i * 0x9E3779B1u;
    return columns;
}
#define NEXT_COLUMNS (V * 0x9E3779B1u)

/* x times the factor where it stays, else 0 */
INLINE vec dropped(vec x, uint32_t key, bits columns, const Rule *rule) {
    bits drawn = key ^ columns;
    MIX_ALL(drawn);
    return (vec)((ivec)(x * rule->factor) & ((ivec)(drawn >> 8) >= rule->threshold));
}

INLINE void drop_rows(const void *x, const void *residual, void *y, int x_bf16, int y_bf16,
                      int64_t row, int64_t end, int64_t C, uint64_t first, const Rule *rule) {
    for (; row < end; row++) {
        uint32_t key = row_key(rule->seed, first + row);
        bits columns = first_columns();
        for (int64_t c = 0; c < C; c += V, columns += NEXT_COLUMNS) {
            vec v = dropped(take(x, x_bf16, row * C + c, C - c), key, columns, rule);
            if (residual) v += take(residual, y_bf16, row * C + c, C - c);
            put(v, y, y_bf16, row * C + c, C - c);
        }
    }
}

/* y = dropout(x), or residual + dropout(x) where that is not null. x may be y. residual is of y's
   type; either type is float32 or bf16. */
void drop(const void *x, const void *residual, void *y, int x_bf16, int y_bf16, int64_t R,
          int64_t C, uint64_t first, uint64_t seed, int threshold, float factor, int threads) {
    Rule rule = {seed, threshold, factor};
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (threads > 1)
#endif
    for (int t = 0; t < threads; t++) {
        int64_t from = R * t / threads, to = R * (t + 1) / threads;
        if (x_bf16 && y_bf16) drop_rows(x, residual, y, 1, 1, from, to, C, first, &rule);
        else if (x_bf16) drop_rows(x, residual, y, 1, 0, from, to, C, first, &rule);
        else if (y_bf16) drop_rows(x, residual, y, 0, 1, from, to, C, first, &rule);
        else drop_rows(x, residual, y, 0, 0, from, to, C, first, &rule);
    }
}

/* -------------------------------------------------------------------------------------------- */
/* Attention's probabilities */

INLINE vec greater(vec a, vec b) {
    ivec first = a > b;
    return (vec)(((ivec)a & first) | ((ivec)b & ~first));
}

static void softmax_row(float *s, float *d, int64_t C, int64_t count, float scale, uint32_t key,
                        const Rule *rule) {
    float most = -INFINITY;
    vec most_of = (vec){0} - INFINITY, sum = {0};
    int64_t c = 0;
    for (; c + V <= count; c += V) most_of = greater(AT(s + c), most_of);
    for (int i = 0; i < V; i++) most = most_of[i] > most ? most_of[i] : most;
    for (; c < count; c++) most = s[c] > most ? s[c] : most;
    for (c = 0; c < count; c += V) {
        vec e = exponential((take(s, 0, c, count - c) - most) * scale);
        for (int64_t i = count - c; i < V; i++) e[i] = 0;
        sum += e;
        put(e, s, 0, c, count - c);
    }
    float by = 1 / total(sum);
    bits columns = first_columns();
    for (c = 0; c < count; c += V, columns += NEXT_COLUMNS) {
        vec p = take(s, 0, c, count - c) * by;
        put(p, s, 0, c, count - c);
        put(dropped(p, key, columns, rule), d, 0, c, count - c);
    }
    for (c = count; c < C; c++) s[c] = d[c] = 0;
}

/* Scores s become probabilities p = softmax(s * scale), and d = dropout(p). Row r has
   counts[r / each] keys; those behind them get 0. */
void softmax_drop(float *s, float *d, const int *counts, int64_t each, float scale, int64_t R,
                  int64_t C, uint64_t first, uint64_t seed, int threshold, float factor,
                  int threads) {
    Rule rule = {seed, threshold, factor};
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (threads > 1)
#endif
    for (int64_t r = 0; r < R; r++)
        softmax_row(s + r * C, d + r * C, C, counts[r / each], scale, row_key(seed, first + r),
                    &rule);
}

/* From p and the gradient g of d: d again, and in the place of g the gradient of s,
   ds = scale p (z g - sum(p z g)), with d = p z. */
void softmax_drop_backward(const float *p, float *g, float *d, const int *counts, int64_t each,
                           float scale, int64_t R, int64_t C, uint64_t first, uint64_t seed,
                           int threshold, float factor, int threads) {
    Rule rule = {seed, threshold, factor};
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (threads > 1)
#endif
    for (int64_t r = 0; r < R; r++) {
        const float *P = p + r * C;
        float *G = g + r * C, *D = d + r * C;
        int64_t count = counts[r / each], c;
        uint32_t key = row_key(seed, first + r);
        bits columns = first_columns();
        vec sum = {0};
        for (c = 0; c < count; c += V, columns += NEXT_COLUMNS) {
            vec one = (vec){0} + 1.0f, v = take(P, 0, c, count - c);
            vec z = dropped(one, key, columns, &rule), zg = z * take(G, 0, c, count - c);
            sum += v * zg;
            put(zg, G, 0, c, count - c);
            put(v * z, D, 0, c, count - c);
        }
        float delta = total(sum);
        for (c = 0; c < count; c += V)
            put((take(G, 0, c, count - c) - delta) * take(P, 0, c, count - c) * scale, G, 0, c,
                count - c);
        for (c = count; c < C; c++) G[c] = D[c] = 0;
    }
}
