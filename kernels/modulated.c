/* A step of modulated layers (modulated.py) on a few latents, for sampling on a CPU. few_rows.py
   builds it, modulated_rows.py calls it; rows.h says how threads share the work and which types the
   weights may have. */
#include "rows.h"

typedef struct { Linear up, down; Norm norm; } Layer;

/* x (M, N) -> result (M, N) = linear x + out * layers(in x), where `factors` are in, linear and out
   (3, N). What the condition says: `told` (M, count * 2 F + 2 W), for each layer and then for the
   last norm a scale, of which 1 is missing, and a shift. All widths are multiples of 16. Returns 0,
   or 1 where there is no memory. */
int modulated(const float *x, float *result, const float *factors, const float *told, int M, int N,
              int W, int F, int count, int activation, const Linear *first, const Layer *layers,
              const Norm *last, const Linear *end, float eps, int threads) {
    /* rows a power of two apart would fall into the same few places of the first-level cache */
    int wide = F + 16, K = 2 * (count * F + W);
    size_t bytes = sizeof(float) * M * ((long)N + 2 * W + wide);
    float *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!memory) return 1;
    float *in = memory, *h = in + (long)M * N, *y = h + (long)M * W, *hidden = y + (long)M * W;
#pragma omp parallel num_threads(threads)
    {
        Thread t = {0, 1};
#ifdef _OPENMP
        t = (Thread){omp_get_thread_num(), omp_get_num_threads()};
#endif
        int from = share(N, t.number, t.count), to = share(N, t.number + 1, t.count);
        for (int m = 0; m < M; m++)
            for (int n = from; n < to; n += V)
                AT(in + (long)m * N + n) = AT(x + (long)m * N + n) * AT(factors + n);
        BARRIER
        linear(in, N, M, N, first, N, 0, h, W, W, 0, t);
        BARRIER
        for (int i = 0; i < count; i++) {
            const Layer *l = layers + i;
            EACH(m, M) {
                add_norm(h + (long)m * W, NULL, NULL, &l->norm, eps, y + (long)m * W, W);
                for (int w = 0; w < W; w += V) AT(h + (long)m * W + w) += AT(l->down.b + w);
            }
            BARRIER
            linear(y, W, M, W, &l->up, W, 0, hidden, wide, F, 0, t);
            int begin = share(F, t.number, t.count), stop = share(F, t.number + 1, t.count);
            for (int m = 0; m < M; m++)  /* each thread takes what it made itself */
                for (int f = begin; f < stop; f += V) {
                    const float *scale = told + (long)m * K + 2L * i * F + f;
                    float *z = hidden + (long)m * wide + f;
                    AT(z) = activated(AT(z) * (1.0f + AT(scale)) + AT(scale + F), activation);
                }
            BARRIER
            linear(hidden, wide, M, F, &l->down, F, 0, h, W, W, 1, t);
            BARRIER
        }
        EACH(m, M) {
            const float *scale = told + (long)m * K + 2L * count * F;
            float *to = y + (long)m * W;
            add_norm(h + (long)m * W, NULL, NULL, last, eps, to, W);
            for (int w = 0; w < W; w += V)
                AT(to + w) = AT(to + w) * (1.0f + AT(scale + w)) + AT(scale + W + w);
        }
        BARRIER
        linear(y, W, M, W, end, W, 0, result, N, N, 0, t);
        for (int m = 0; m < M; m++)
            for (int n = from; n < to; n += V) {
                float *z = result + (long)m * N + n;
                const float *f = factors + n;
                AT(z) = AT(f + N) * AT(x + (long)m * N + n) + AT(f + 2L * N) * AT(z);
            }
    }
    free(memory);
    return 0;
}
