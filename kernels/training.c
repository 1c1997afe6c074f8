/* Training on a CPU: attention among few keys, and bias + GELU, forward and backward. training.py
   builds it and calls it.

Numbers are float32 or bfloat16 (`bf16`), and sums always float32. Attention works on one sample's
head at a time, copied to float32 in memory of the thread's own, where it stays in the second-level
cache; scores and probabilities never leave it. The backward makes them again: o = p v and p =
softmax(s), s = scale q k^T give

    dv = p^T do      dp = do v^T      ds = scale p (dp - sum_j p dp)      dq = ds k      dk = ds^T q
*/
#include "rows.h"

#if defined(__AVX512F__)
enum { WIDE = 4 };  /* vectors of a row that a tile of 4 rows takes: the sums fill the registers */
#else
enum { WIDE = 2 };
#endif
enum { TILE = 8 };  /* rows are allotted in multiples of it; what is behind the last one is zero */

/* C (M, N) = A B. A's number (m, k) is at a[m * am + k * ak]; rows of B (K, N) and of C lie n
   numbers apart; N is a multiple of V, M of TILE. */
INLINE void sums(const float *a, int64_t am, int64_t ak, const float *b, float *c, int64_t n, int K,
                 int rows, int wide) {
    vec sum[TILE][WIDE];
    UNROLL for (int m = 0; m < rows; m++)
        UNROLL for (int w = 0; w < wide; w++) sum[m][w] = (vec){0};
    for (int k = 0; k < K; k++) {
        vec in[WIDE];
        UNROLL for (int w = 0; w < wide; w++) in[w] = AT(b + k * n + w * V);
        UNROLL for (int m = 0; m < rows; m++) {
            vec by = (vec){0} + a[m * am + k * ak];
            UNROLL for (int w = 0; w < wide; w++) ADD_PRODUCT(sum[m][w], by, in[w]);
        }
    }
    UNROLL for (int m = 0; m < rows; m++)
        UNROLL for (int w = 0; w < wide; w++) AT(c + m * n + w * V) = sum[m][w];
}

static void product(const float *a, int64_t am, int64_t ak, const float *b, float *c, int64_t n,
                    int M, int N, int K) {
    for (int j = 0; j < N;) {
        int wide = N - j >= WIDE * V ? WIDE : 1;
        for (int i = 0; i < M; i += wide == WIDE ? TILE / 2 : TILE)
            if (wide == WIDE)
                sums(a + i * am, am, ak, b + j, c + i * n + j, n, K, TILE / 2, WIDE);
            else
                sums(a + i * am, am, ak, b + j, c + i * n + j, n, K, TILE, 1);
        j += wide * V;
    }
}

/* -------------------------------------------------------------------------------------------- */
/* Attention */

typedef struct {
    int bf16, B, H, Lq, Lk, D, causal, threads;
    int64_t q_row, k_row;  /* from one row of q to the next, in numbers; of k and v */
    const int *lengths;    /* (B,) keys of each sample, or null: all Lk */
} Sizes;

/* What a thread keeps of one sample's head, with DP >= D and KP >= Lk numbers in a row */
typedef struct {
    int count, DP, KP, QP;
    float *q, *o;  /* (QP, DP) */
    float *k, *v;  /* (KP, DP) */
    float *k_turned, *v_turned;  /* (DP, KP) */
    float *p, *s;  /* (QP, KP) */
} Head;

INLINE int up(int n, int to) { return (n + to - 1) / to * to; }

/* The head's memory, from `room` on; returns how many floats it takes */
static int64_t allot(const Sizes *z, float *room, Head *h) {
    int64_t DP = h->DP = up(z->D, V), KP = h->KP = up(up(z->Lk, V), TILE);
    int64_t QP = h->QP = up(z->Lq, TILE);
    h->q = room, h->o = h->q + QP * DP, h->k = h->o + QP * DP, h->v = h->k + KP * DP;
    h->k_turned = h->v + KP * DP, h->v_turned = h->k_turned + KP * DP;
    h->p = h->v_turned + KP * DP, h->s = h->p + QP * KP;
    return 2 * (QP * DP + 2 * KP * DP + QP * KP);
}

int64_t attention_room(const Sizes *z) {
    Head h;
    return allot(z, NULL, &h);
}

#ifdef __clang__
INLINE void turn(vec *x) {
    float y[V][V];
    for (int i = 0; i < V; i++)
        for (int l = 0; l < V; l++) y[l][i] = x[i][l];
    memcpy(x, y, sizeof y);
}
#else
/* Where two rows' numbers go when a block of V by V is turned around: for s = 1, 2, 4, 8, lanes
   with the bit s change places between rows without and with it. */
#define LANE(l, s, high) (high ? l & s ? V + l : l | s : l & s ? V + (l ^ s) : l)
#define LANES(s, high) {LANE(0, s, high), LANE(1, s, high), LANE(2, s, high), LANE(3, s, high), \
    LANE(4, s, high), LANE(5, s, high), LANE(6, s, high), LANE(7, s, high), LANE(8, s, high), \
    LANE(9, s, high), LANE(10, s, high), LANE(11, s, high), LANE(12, s, high), LANE(13, s, high), \
    LANE(14, s, high), LANE(15, s, high)}
static const int32_t lanes[4][2][16] = {{LANES(1, 0), LANES(1, 1)}, {LANES(2, 0), LANES(2, 1)},
                                        {LANES(4, 0), LANES(4, 1)}, {LANES(8, 0), LANES(8, 1)}};

INLINE void turn(vec *x) {
    UNROLL for (int n = 0; n < 4; n++)
        UNROLL for (int i = 0; i < V / 2; i++) {
            int s = 1 << n, low = (i & (s - 1)) | (i & -s) << 1;
            if (s >= V) continue;
            vec a = x[low], b = x[low | s];
            x[low] = __builtin_shuffle(a, b, *(const ivec *)lanes[n][0]);
            x[low | s] = __builtin_shuffle(a, b, *(const ivec *)lanes[n][1]);
        }
}
#endif

INLINE void copy_rows(const void *x, int bf16, int64_t row, int count, int D, const Head *h,
                      float *to, float *turned) {
    for (int i = 0; i < count; i += V)
        for (int d = 0; d < D; d += V) {
            vec block[V];
            UNROLL for (int r = 0; r < V; r++) {
                block[r] = (vec){0};
                if (i + r >= count) continue;
                block[r] = take(x, bf16, (i + r) * row + d, D - d);
                AT(to + (int64_t)(i + r) * h->DP + d) = block[r];
            }
            if (!turned) continue;
            turn(block);
            UNROLL for (int r = 0; r < V; r++) AT(turned + (int64_t)(d + r) * h->KP + i) = block[r];
        }
}

/* `count` of a sample's L rows of D numbers, from number `column` of each on, as float32 (.., DP);
   turned around (DP, KP) as well where that is asked for */
static void copy_in(const Sizes *z, const void *x, int L, int64_t row, int64_t sample, int column,
                    int count, const Head *h, float *to, float *turned) {
    const char *first = (const char *)x + (z->bf16 ? 2 : 4) * (sample * L * row + column);
    if (z->bf16) copy_rows(first, 1, row, count, z->D, h, to, turned);
    else copy_rows(first, 0, row, count, z->D, h, to, turned);
}

/* The way back; zeros behind the first `count` rows */
static void copy_out(const Sizes *z, const float *from, void *x, int L, int64_t row, int64_t sample,
                     int column, int count, const Head *h) {
    for (int i = 0; i < L; i++)
        for (int d = 0; d < z->D; d += V)
            put(i < count ? AT(from + (int64_t)i * h->DP + d) : (vec){0}, x, z->bf16,
                (sample * L + i) * row + column + d, z->D - d);
}

INLINE vec larger(vec a, vec b) {
    ivec first = a > b;
    return (vec)(((ivec)a & first) | ((ivec)b & ~first));
}

/* All ones where there is a number: from j on, with `count` of them in all */
INLINE ivec real(int j, int count) {
    ivec place;
    for (int i = 0; i < V; i++) place[i] = j + i;
    return place < count;
}

/* How many keys query i sees */
INLINE int seen(const Sizes *z, const Head *h, int i) {
    return z->causal && i + 1 < h->count ? i + 1 : h->count;
}

/* Scores -> softmax(scale * scores) of the first `count`, zeros behind them */
static void softmax(float *s, int count, int KP, float scale) {
    vec least = (vec){0} - INFINITY, most_of = least, sum = {0};
    for (int j = 0; j < count; j += V) {
        ivec here = real(j, count);
        AT(s + j) = (vec)(((ivec)AT(s + j) & here) | ((ivec)least & ~here));
        most_of = larger(AT(s + j), most_of);
    }
    float most = -INFINITY;
    for (int i = 0; i < V; i++) most = most_of[i] > most ? most_of[i] : most;
    for (int j = 0; j < KP; j += V) {
        vec e = (vec){0};
        if (j < count) e = (vec)((ivec)exponential((AT(s + j) - most) * scale) & real(j, count));
        sum += e;
        AT(s + j) = e;
    }
    float by = 1 / total(sum);
    for (int j = 0; j < count; j += V) AT(s + j) *= by;
}

/* A sample's head: what is known of it, and its probabilities. What is left of another head behind
   its own rows and columns is never looked at. */
static void begin(const Sizes *z, int64_t sample, int column, const void *q, const void *k,
                  const void *v, int backward, Head *h) {
    h->count = z->lengths ? z->lengths[sample] : z->Lk;
    copy_in(z, q, z->Lq, z->q_row, sample, column, z->Lq, h, h->q, NULL);
    copy_in(z, k, z->Lk, z->k_row, sample, column, h->count, h, h->k, h->k_turned);
    copy_in(z, v, z->Lk, z->k_row, sample, column, h->count, h, h->v,
            backward ? h->v_turned : NULL);
    product(h->q, h->DP, 1, h->k_turned, h->p, h->KP, h->QP, h->KP, z->D);
    for (int i = 0; i < z->Lq; i++)
        softmax(h->p + (int64_t)i * h->KP, seen(z, h, i), h->KP, 1 / sqrtf(z->D));
}

/* p and the gradient of p v -> the gradient of the scores, in a row's place */
static void score_gradients(const float *p, float *s, int count, int KP, float scale) {
    vec sum = {0};
    for (int j = 0; j < KP; j += V) {
        AT(s + j) = (vec)((ivec)AT(s + j) & real(j, count));
        sum += AT(p + j) * AT(s + j);
    }
    float delta = total(sum);
    for (int j = 0; j < KP; j += V) AT(s + j) = scale * AT(p + j) * (AT(s + j) - delta);
}

#ifdef _OPENMP
#define THREAD omp_get_thread_num()
#else
#define THREAD 0
#endif

/* From a head's probabilities and g, the gradient of o: those of q, k and v in the places of o, k
   and v, which are needed no more by then */
static void gradients(const Sizes *z, Head *h) {
    product(h->o, h->DP, 1, h->v_turned, h->s, h->KP, h->QP, h->KP, z->D);
    for (int i = 0; i < z->Lq; i++)
        score_gradients(h->p + (int64_t)i * h->KP, h->s + (int64_t)i * h->KP, seen(z, h, i), h->KP,
                        1 / sqrtf(z->D));
    product(h->p, 1, h->KP, h->o, h->v, h->DP, up(h->count, TILE), h->DP, z->Lq);
    product(h->s, h->KP, 1, h->k, h->o, h->DP, h->QP, h->DP, h->count);
    product(h->s, 1, h->KP, h->q, h->k, h->DP, up(h->count, TILE), h->DP, z->Lq);
}

/* o (B, Lq, H, D) = softmax(q k^T / sqrt(D)) v, 0 for queries without a key. Or, with the gradient
   g of o, the gradients dq, dk and dv, which lie as q, k and v do. room: attention_room zeros for
   each thread. */
void attend(const Sizes *z, const void *q, const void *k, const void *v, void *o, const void *g,
            void *dq, void *dk, void *dv, float *room) {
    int64_t each = attention_room(z);
#ifdef _OPENMP
#pragma omp parallel for num_threads(z->threads) if (z->threads > 1)
#endif
    for (int64_t n = 0; n < (int64_t)z->B * z->H; n++) {
        int64_t b = n / z->H, o_row = (int64_t)z->H * z->D;
        int column = n % z->H * z->D;
        Head h;
        allot(z, room + each * THREAD, &h);
        begin(z, b, column, q, k, v, g != NULL, &h);
        if (!g) {
            product(h.p, h.KP, 1, h.v, h.o, h.DP, h.QP, h.DP, h.count);
            copy_out(z, h.o, o, z->Lq, o_row, b, column, z->Lq, &h);
            continue;
        }
        copy_in(z, g, z->Lq, o_row, b, column, z->Lq, &h, h.o, NULL);
        gradients(z, &h);
        copy_out(z, h.o, dq, z->Lq, z->q_row, b, column, z->Lq, &h);
        copy_out(z, h.k, dk, z->Lk, z->k_row, b, column, h.count, &h);
        copy_out(z, h.v, dv, z->Lk, z->k_row, b, column, h.count, &h);
    }
}

/* -------------------------------------------------------------------------------------------- */
/* Bias + GELU, exact: z Phi(z), z = h + bias */

/* Phi(z) = (1 + erf(z / sqrt 2)) / 2, erf by a quotient of polynomials that is right to float32 */
INLINE vec normal_distribution(vec z) {
    vec x = z * 0.70710678f, y;
    ivec low = x < -4.0f, high = x > 4.0f;
    vec end = (vec){0} + 4.0f;
    x = (vec)(((ivec)x & ~(low | high)) | ((ivec)-end & low) | ((ivec)end & high));
    y = x * x;
    vec p = y * -2.72614225801306e-10f + 2.77068142495902e-08f;
    p = p * y - 2.10102402082508e-06f;
    p = p * y - 5.69250639462346e-05f;
    p = p * y - 7.34990630326855e-04f;
    p = p * y - 2.95459980854025e-03f;
    p = p * y - 1.60960333262415e-02f;
    vec q = y * -1.45660718464996e-05f - 2.13374055278905e-04f;
    q = q * y - 1.68282697438203e-03f;
    q = q * y - 7.37332916720468e-03f;
    q = q * y - 1.42647390514189e-02f;
    return 0.5f + 0.5f * x * p / q;
}

INLINE void gelu_rows(const void *h, const float *bias, void *y, int bf16, int64_t row, int64_t end,
                      int64_t C) {
    for (; row < end; row++)
        for (int64_t c = 0; c < C; c += V) {
            vec z = take(h, bf16, row * C + c, C - c) + take(bias, 0, c, C - c);
            put(z * normal_distribution(z), y, bf16, row * C + c, C - c);
        }
}

/* h, y (R, C), bias (C,) */
void bias_gelu(const void *h, const float *bias, void *y, int bf16, int64_t R, int64_t C,
               int threads) {
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (threads > 1)
#endif
    for (int t = 0; t < threads; t++) {
        int64_t from = R * t / threads, to = R * (t + 1) / threads;
        if (bf16) gelu_rows(h, bias, y, 1, from, to, C);
        else gelu_rows(h, bias, y, 0, from, to, C);
    }
}

INLINE void gelu_gradients(const void *h, const float *bias, const void *dy, void *dh, float *dbias,
                           int bf16, int64_t row, int64_t end, int64_t C) {
    for (; row < end; row++)
        for (int64_t c = 0; c < C; c += V) {
            vec z = take(h, bf16, row * C + c, C - c) + take(bias, 0, c, C - c);
            vec slope = normal_distribution(z) + z * 0.3989422804f * exponential(-0.5f * z * z);
            vec g = take(dy, bf16, row * C + c, C - c) * slope;
            put(g, dh, bf16, row * C + c, C - c);
            put(take(dbias, 0, c, C - c) + g, dbias, 0, c, C - c);
        }
}

/* dh (R, C), and dbiases (threads, C), zeros before, whose sum is the bias' gradient */
void bias_gelu_backward(const void *h, const float *bias, const void *dy, void *dh, float *dbiases,
                        int bf16, int64_t R, int64_t C, int threads) {
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (threads > 1)
#endif
    for (int t = 0; t < threads; t++) {
        int64_t from = R * t / threads, to = R * (t + 1) / threads;
        if (bf16) gelu_gradients(h, bias, dy, dh, dbiases + t * C, 1, from, to, C);
        else gelu_gradients(h, bias, dy, dh, dbiases + t * C, 0, from, to, C);
    }
}
