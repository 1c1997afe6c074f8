/* A whole transformer.Stack with cross-attention, the VAE's decoder, on the frames of each motion,
   for sampling on a CPU. few_rows.py builds it and calls it.

In plain torch half of the time goes into norms, softmaxes and activations, each of which walks
through memory on its own, and into padding. Here each motion has its own length, and is done by a
thread of its own while there are as many left; the last ones are shared by all threads, which meet
at barriers. Layers are post-norm; weights, sums and all else are float32. */
#include "rows.h"

/* join.w is null except in the output blocks; cross and cross_out read the memory */
typedef struct {
    Linear join, qkv, out, cross, cross_out, up, down;
    Norm norm1, norm2, norm3;
} Layer;

typedef struct {
    int D, H, F, N, count, half, activation;  /* N: tokens of memory */
    const Layer *layers;
    const Norm *last;
    float eps;
} Decoder;

enum { ROWS_AT_ONCE = 12 };  /* queries whose scores stay in the first-level cache */
#define MEET do { if (t.count > 1) { BARRIER } } while (0)
#define WHOLE(n) (((n) + 15) / 16 * 16)

/* What a motion of T frames needs: numbers of each buffer, one after another */
typedef struct { float *qkv, *vt, *o, *a, *h, *y, *joined, *kept, *hidden, *kv, *value; } Room;

static long room_of(const Decoder *d, int T, Room *r, float *at) {
    long D = d->D, K = WHOLE(T), size = T * D;
    long sizes[] = {3 * K * D, K * D, size, size, size, size, size, size * d->half,
                    (long)T * (d->F + 16), 2L * d->N * D, D};
    float **to[] = {&r->qkv, &r->vt, &r->o, &r->a, &r->h, &r->y, &r->joined, &r->kept, &r->hidden,
                    &r->kv, &r->value};
    long sum = 0;
    for (int i = 0; i < (int)(sizeof sizes / sizeof *sizes); i++) {
        if (at) *to[i] = at + sum;
        sum += WHOLE(sizes[i]);
    }
    return sum;
}

/* softmax(q k^T / sqrt(size)) v of one head, for `rows` queries from row `top` on. p has room for
   ROWS_AT_ONCE rows of scores; nothing: as many zeros as there are keys. */
static void attend(const Decoder *d, const Room *r, int T, int head, int top, int rows, float *p,
                   const float *nothing) {
    int D = d->D, size = D / d->H, K = WHOLE(T);
    Linear keys = {r->qkv + D + head * size, NULL, nothing};
    Linear values = {r->vt + (long)head * size * K, NULL, nothing};
    float *o = r->o + (long)top * D + head * size, scale = 1 / sqrtf(size);
    linear(r->qkv + 3L * top * D + head * size, 3 * D, rows, size, &keys, 3 * D, 0, p, K, K, 0,
           (Thread){0, 1});
    float by[ROWS_AT_ONCE];
    for (int m = 0; m < rows; m++) {
        float *row = p + (long)m * K, most = row[0];
        for (int k = 1; k < T; k++) most = row[k] > most ? row[k] : most;
        vec sum = {0};
        for (int k = 0; k < K; k += V) {
            AT(row + k) = exponential((AT(row + k) - most) * scale);
            if (k + V > T)
                for (int i = k; i < k + V; i++) row[i] = i < T ? row[i] : 0;
            sum += AT(row + k);
        }
        by[m] = 1 / total(sum);
    }
    linear(p, K, rows, K, &values, K, 0, o, D, size, 0, (Thread){0, 1});
    for (int m = 0; m < rows; m++)
        for (int i = 0; i < size; i += V) AT(o + (long)m * D + i) *= by[m];
}

/* The same for a row q (D,) that attends to the few tokens of a memory, kv (N, 2 D) -> o (D,) */
static void attend_to_few(const float *q, const float *kv, int N, int D, int H, float *o) {
    int size = D / H;
    for (int head = 0; head < H; head++, q += size, kv += size, o += size) {
        float p[N], most = -INFINITY, sum = 0;
        for (int j = 0; j < N; j++) {
            p[j] = dot(q, kv + 2L * j * D, size) / sqrtf(size);
            most = p[j] > most ? p[j] : most;
        }
        for (int j = 0; j < N; j++) sum += p[j] = expf(p[j] - most);
        for (int i = 0; i < size; i += V) {
            vec s = {0};
            for (int j = 0; j < N; j++) s += p[j] * AT(kv + 2L * j * D + D + i);
            AT(o + i) = s / sum;
        }
    }
}

/* x (T, D) and memory (N, D) -> result (T, D), by the threads t counts */
static void decode_one(const Decoder *d, const float *x, int T, const float *memory, float *result,
                       const Room *r, float *scores, const float *nothing, Thread t) {
    int D = d->D, F = d->F, N = d->N, K = WHOLE(T), W = F + 16;
    int blocks = (T + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
    const float *in = x;
    for (long i = t.number; i < 3L * (K - T) * D; i += t.count) r->qkv[3L * T * D + i] = 0;
    for (int i = 0; i < d->count; i++) {
        const Layer *l = d->layers + i;
        if (l->join.w) {
            linear(in, D, T, D, &l->join, 2 * D, 0, r->joined, D, D, 0, t);
            linear(r->kept + (long)(d->count - 1 - i) * T * D, D, T, D, &l->join, 2 * D, D,
                   r->joined, D, D, 1, t);
            in = r->joined;
            MEET;
        }
        linear(in, D, T, D, &l->qkv, D, 0, r->qkv, 3 * D, 3 * D, 0, t);
        Linear kv = {l->cross.w + (long)D * D, NULL, l->cross.b + D};
        Linear v = {kv.w + (long)D * D, NULL, kv.b + D}, q = l->cross;
        if (N > 1) linear(memory, D, N, D, &kv, D, 0, r->kv, 2 * D, 2 * D, 0, t);
        else linear(memory, D, 1, D, &v, D, 0, r->kv, D, D, 0, t);
        MEET;
        EACH(c, D)
            for (int k = 0; k < K; k++)
                r->vt[(long)c * K + k] = k < T ? r->qkv[3L * k * D + 2 * D + c] : 0;
        if (N == 1)  /* attention to one token is that token's value */
            linear(r->kv, D, 1, D, &l->cross_out, D, 0, r->value, D, D, 0, t);
        MEET;
        EACH(n, d->H * blocks) {
            int top = n / d->H * ROWS_AT_ONCE, left = T - top;
            attend(d, r, T, n % d->H, top, left < ROWS_AT_ONCE ? left : ROWS_AT_ONCE, scores,
                   nothing);
        }
        MEET;
        linear(r->o, D, T, D, &l->out, D, 0, r->a, D, D, 0, t);
        MEET;
        EACH(m, T) {
            long at = (long)m * D;
            add_norm(in + at, r->a + at, NULL, &l->norm1, d->eps, r->h + at, D);
            if (N == 1) add_norm(r->h + at, r->value, NULL, &l->norm2, d->eps, r->h + at, D);
        }
        MEET;
        if (N > 1) {
            linear(r->h, D, T, D, &q, D, 0, r->a, D, D, 0, t);
            MEET;
            EACH(m, T) attend_to_few(r->a + (long)m * D, r->kv, N, D, d->H, r->o + (long)m * D);
            MEET;
            linear(r->o, D, T, D, &l->cross_out, D, 0, r->a, D, D, 0, t);
            MEET;
            EACH(m, T) {
                long at = (long)m * D;
                add_norm(r->h + at, r->a + at, NULL, &l->norm2, d->eps, r->h + at, D);
            }
            MEET;
        }
        linear(r->h, D, T, D, &l->up, D, 0, r->hidden, W, F, 0, t);
        int begin = share(F, t.number, t.count), end = share(F, t.number + 1, t.count);
        for (int m = 0; m < T; m++)
            for (int f = begin; f < end; f += V) {
                float *z = r->hidden + (long)m * W + f;
                AT(z) = activated(AT(z), d->activation);
            }
        MEET;
        linear(r->hidden, W, T, F, &l->down, F, 0, r->a, D, D, 0, t);
        MEET;
        float *to = i < d->half ? r->kept + (long)i * T * D : r->y;
        EACH(m, T) {
            long at = (long)m * D;
            add_norm(r->h + at, r->a + at, NULL, &l->norm3, d->eps, to + at, D);
        }
        in = to;
        MEET;
    }
    EACH(m, T) add_norm(in + (long)m * D, NULL, NULL, d->last, d->eps, result + (long)m * D, D);
}

/* x (B, T, D), or (1, T, D) for all motions, and memory (B, N, D) -> result (B, T, D): `lengths`
   (B,) frames of each, then zeros. D / H, D and F are multiples of 16. Returns 0, or 1 where there
   is no memory left. */
int decode(const float *x, int shared, float *result, const int32_t *lengths, int B, int T,
           const float *memory, int N, int D, int H, int F, int count, int activation,
           const Layer *layers, const Norm *last, float eps, int threads) {
    Decoder d = {D, H, F, N, count, layers[count - 1].join.w ? count / 2 : 0, activation, layers,
                 last, eps};
    int K = WHOLE(T), zeros = K > D ? K : D;
    long room = room_of(&d, T, &(Room){0}, NULL), each = room + ROWS_AT_ONCE * K;
    float *all = aligned_alloc(64, (sizeof(float) * (each * threads + zeros) + 63) / 64 * 64);
    if (!all) return 1;
    float *nothing = all + each * threads;
    memset(nothing, 0, sizeof(float) * zeros);
#pragma omp parallel num_threads(threads)
    {
        Thread t = {0, 1};
#ifdef _OPENMP
        t = (Thread){omp_get_thread_num(), omp_get_num_threads()};
#endif
        int alone = B / t.count * t.count;
        for (int b = 0; b < B; b++) {
            int mine = b < alone;
            if (mine && b % t.count != t.number) continue;
            if (b == alone && t.count > 1) { BARRIER }
            Room r;
            room_of(&d, lengths[b], &r, all + each * (mine ? t.number : 0));
            decode_one(&d, x + (shared ? 0 : (long)b * T * D), lengths[b], memory + (long)b * N * D,
                       result + (long)b * T * D, &r, all + each * t.number + room, nothing,
                       mine ? (Thread){0, 1} : t);
            if (mine || t.number == 0)
                memset(result + ((long)b * T + lengths[b]) * D, 0,
                       sizeof(float) * (T - lengths[b]) * D);
        }
    }
    free(all);
    return 0;
}
