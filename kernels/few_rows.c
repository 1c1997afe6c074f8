/* A whole transformer.Stack on few rows of tokens, for sampling on a CPU. few_rows.py builds it and
   calls it.

With a handful of rows a product takes as long as reading its weights, and between one operation and
the next the processor waits. Here one call runs all the layers: every thread computes its share of
a product's outputs, all threads meet at a barrier, and the next product begins. Weights stay where
torch has them, row-major (out, in) in float32; with -DBF16 in bfloat16, half of the bytes; with
-DINT8 they are int8 with one scale per row, a quarter. Sums are always float32, and so are x, the
biases and the norms. */
#include "rows.h"

/* join.w is null except in the output blocks, behind the middle one */
typedef struct { Linear join, qkv, out, up, down; Norm norm1, norm2; } Layer;

/* One head of one sequence: softmax(q k^T / sqrt(size)) v for the first `queries` tokens. qkv
   (L, 3 D) begins at this head's first query entry, and o (queries, D) likewise; p (L,) has room
   for one row of probabilities. */
static void attend(const float *qkv, int L, int queries, int D, int size, int causal,
                   float *o, float *p) {
    for (int i = 0; i < queries; i++) {
        int keys = causal ? i + 1 : L;
        float most = -INFINITY, sum = 0;
        for (int j = 0; j < keys; j++) {
            p[j] = dot(qkv + 3L * i * D, qkv + 3L * j * D + D, size) / sqrtf(size);
            most = p[j] > most ? p[j] : most;
        }
        for (int j = 0; j < keys; j++) sum += p[j] = expf(p[j] - most);
        for (int d = 0; d < size; d += V) {  /* reads up to V - 1 numbers of the next head */
            vec s = {0};
            for (int j = 0; j < keys; j++) s += p[j] * AT(qkv + 3L * j * D + 2 * D + d);
            s /= sum;
            int own = size - d < V ? size - d : V;
            memcpy(o + (long)i * D + d, &s, sizeof(float) * own);
        }
    }
}

/* -------------------------------------------------------------------------------------------- */
/* The stack */

/* x (B, L, D) -> result (B, first, D), the first tokens of each sequence. H heads, F hidden units;
   `last`: the norm behind the layers, or null. D and F are multiples of 16, D one of H. Returns 0,
   or 1 where there is no memory. */
int few_rows(const float *x, float *result, int B, int L, int first, int D, int H, int F, int count,
             int pre_norm, int activation, int causal, const Layer *layers, const Norm *last,
             float eps, int threads) {
    int half = layers[count - 1].join.w ? count / 2 : 0;
    /* rows a power of two apart would fall into the same few places of the first-level cache */
    int W = F + 16;
    long size = (long)B * L * D;
    size_t bytes = sizeof(float) * (size * (9 + half) + (long)B * L * W + (long)threads * L);
    /* aligned, since a vector across two lines of the cache is read twice */
    float *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!memory) return 1;
    float *qkv = memory, *o = qkv + 3 * size, *a = o + size, *h = a + size, *s = h + size,
          *y = s + size, *joined = y + size, *kept = joined + size, *hidden = kept + half * size,
          *scores = hidden + (long)B * L * W;
#pragma omp parallel num_threads(threads)
    {
        Thread t = {0, 1};
#ifdef _OPENMP
        t = (Thread){omp_get_thread_num(), omp_get_num_threads()};
#endif
        const float *in = x;
        int M = B * L, queries = L;
        for (int i = 0; i < count; i++) {
            const Layer *l = layers + i;
            if (l->join.w) {  /* Linear([x, the output of the mirrored input block]) */
                linear(in, D, M, D, &l->join, 2 * D, 0, joined, D, D, 0, t);
                const float *mirrored = kept + (count - 1 - i) * size;
                linear(mirrored, D, M, D, &l->join, 2 * D, D, joined, D, D, 1, t);
                in = joined;
                BARRIER
            }
            if (pre_norm) {
                EACH(m, M)
                    add_norm(in + (long)m * D, NULL, NULL, &l->norm1, eps, h + (long)m * D, D);
                BARRIER
            }
            linear(pre_norm ? h : in, D, M, D, &l->qkv, D, 0, qkv, 3 * D, 3 * D, 0, t);
            BARRIER
            if (i == count - 1) queries = first;  /* from here on M counts these rows only */
            EACH(n, B * H) {
                int b = n / H, d = n % H * (D / H);
                attend(qkv + 3L * b * L * D + d, L, queries, D, D / H, causal,
                       o + (long)b * queries * D + d, scores + (long)t.number * L);
            }
            M = B * queries;
            BARRIER
            linear(o, D, M, D, &l->out, D, 0, a, D, D, 0, t);
            BARRIER
            EACH(m, M) {
                long to = (long)m * D, from = ((long)(m / queries) * L + m % queries) * D;
                add_norm(in + from, a + to, s + to, pre_norm ? &l->norm2 : &l->norm1, eps,
                         h + to, D);
            }
            BARRIER
            linear(h, D, M, D, &l->up, D, 0, hidden, W, F, 0, t);
            int begin = share(F, t.number, t.count), end = share(F, t.number + 1, t.count);
            for (int m = 0; m < M; m++)  /* each thread takes what it made itself */
                for (int f = begin; f < end; f += V) {
                    float *z = hidden + (long)m * W + f;
                    AT(z) = activated(AT(z), activation);
                }
            BARRIER
            linear(hidden, W, M, F, &l->down, F, 0, a, D, D, 0, t);
            BARRIER
            float *to = i < half ? kept + i * size : y;
            EACH(m, M) {
                long at = (long)m * D;
                add_norm((pre_norm ? s : h) + at, a + at, NULL, pre_norm ? NULL : &l->norm2, eps,
                         to + at, D);
            }
            in = to;
            BARRIER
        }
        EACH(m, M) add_norm(in + (long)m * D, NULL, NULL, last, eps, result + (long)m * D, D);
    }
    free(memory);
    return 0;
}
