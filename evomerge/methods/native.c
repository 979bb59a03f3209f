/* One pass over the entries of a merge: weighted sums, and the formula of sparse_kernel.py.

   methods/native.py writes these macros in front, then native_floats.c; another set of macros is
   another library:

   OUT, BASE, TYPE_0, TYPE_1, ...   dtypes of what is written, the base, the experts (or terms)
   WIDE, BITS                       what is computed in: float or double; uint32_t or uint64_t
   PAIRS                            whether all dtypes are bfloat16, or all float16
   K, EACH(X), REST(X)              number of experts; X(0) X(1) ...; the same without X(0)
   LINEAR, FUSED                    a weighted sum of K terms, and whether only the sum is rounded
                                    when a product is added; then all of the following are 0
   RANDOM, RANKED, BY_ENTRY, BOUNDED, NORMALIZE, ELECTION   see Form; 1 is weighted, 2 is paper

   There is no branch in a loop, and every operation is rounded as the eager form rounds it, so
   that a vectorising compiler (with -ffp-contract=off) gives the same weights. */

#ifdef __SSE2__
#include <immintrin.h>
#endif

#ifdef __clang__ /* no entry is read after another is written */
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif
#define WEYL 0x9e3779b9u /* as in counter.py, whose signed numbers are these modulo 2^32 */
#define WIDTH ((int32_t)sizeof(CAT(at_, OUT)))
#define BLOCK (1024 / WIDTH)    /* entries at a time: what is written, and their uniforms, in L1 */
#define LINE 32                 /* 16-bit numbers in a line of the cache */
#define LARGE ((int64_t)1 << 21) /* bytes written: more than the cache keeps for who reads them */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define LOWER_FIRST(word) (word)
#else
#define LOWER_FIRST(word) ((word) << 16 | (word) >> 16)
#endif
#define SIGN ((BITS)1 << (8 * sizeof(BITS) - 1))

/* counter.hash_ without its first product. second: that half of a key, see read_numbers. */
static inline uint32_t hash(uint32_t x, uint32_t second) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15) ^ second) * 0x846ca68bu;
    return x ^ (x >> 16);
}

/* As whole numbers positive floats are ordered as they are, and negative ones lie below them. */
static inline WIDE at_least_one(WIDE x) {
    const SIGNED bits = (SIGNED)wide_bits(x), one = (SIGNED)wide_bits(1);
    return wide_of((BITS)(bits < one ? one : bits));
}

struct numbers {
    WIDE scale[K], weight[K], first[K], second[K];
    uint32_t one[K], two[K], from[K], width[K];
    int32_t limit[K];
};

/* One entry. x: experts or terms. rank, uniform: in the upper halves of words. */
static inline WIDE merged(WIDE base, const WIDE *x, const uint32_t *rank, const uint32_t *uniform,
                          const struct numbers *of) {
    (void)base, (void)rank, (void)uniform;
#if LINEAR
    WIDE sum = x[0] * of->scale[0];
#if !FUSED
#define ADD(k) sum += x[k] * of->scale[k];
#else
#define FMA(a, b, c) (sizeof(WIDE) == 8 ? __builtin_fma(a, b, c) : __builtin_fmaf(a, b, c))
#define ADD(k) sum = FMA(x[k], of->scale[k], sum);
#endif
    REST(ADD)
    return sum;
#else
    WIDE t[K];
#define DELTA(k) t[k] = x[k] - base;
    EACH(DELTA)
#if RANDOM
#define UNIFORM(k) const int32_t u_##k = (int32_t)(uniform[k] >> 16);
    EACH(UNIFORM)
#if RANKED
#define RANK(k) const WIDE rank_##k = (WIDE)(int32_t)(rank[k] & 0xffff0000u);
    EACH(RANK)
#define BOUND(k) const WIDE bound_##k = rank_##k * of->second[k] + of->first[k];
    EACH(BOUND)
#if BY_ENTRY
#define RESCALE(k) t[k] /= at_least_one(bound_##k);
    EACH(RESCALE)
#endif
#define KEEP(k) t[k] = (WIDE)u_##k < bound_##k ? t[k] : 0;
#else
#define KEEP(k) t[k] = u_##k < of->limit[k] ? t[k] : 0;
#endif
    EACH(KEEP)
#elif RANKED
#if BOUNDED
#define KEEP(k) t[k] = rank[k] - of->from[k] < of->width[k] ? t[k] : 0;
#else
#define KEEP(k) t[k] = (int32_t)rank[k] < of->limit[k] ? t[k] : 0;
#endif
    EACH(KEEP)
#endif
#define WEIGH(k) t[k] *= of->scale[k];
#if ELECTION != 2
    EACH(WEIGH)
#endif
    WIDE sum = t[0];
#define SUM(k) sum += t[k];
    REST(SUM)
#if ELECTION == 0
    return sum + base;
#else
    /* Votes against the sum become 0; as whole numbers floats are ordered as they are. */
    const BITS sign = wide_bits(sum) & SIGN;
#define VOTE(k)                                         \
    const BITS vote_##k = wide_bits(t[k]) ^ sign;       \
    t[k] = wide_of((SIGNED)vote_##k < 0 ? 0 : vote_##k);
    EACH(VOTE)
#if NORMALIZE
    WIDE share = wide_of(-(BITS)(t[0] > 0) & wide_bits(of->weight[0])); /* 1 or 0 of it */
#define SHARE(k) share = t[k] > 0 ? share + of->weight[k] : share;
    REST(SHARE)
    share = share == 0 ? 1 : share;
#else
    const WIDE share = 1;
#endif
#if ELECTION == 2
    EACH(WEIGH)
#endif
    sum = t[0];
    REST(SUM)
    return wide_of(wide_bits(sum / share) ^ sign) + base;
#endif
#endif
}

static void read_numbers(struct numbers *of, const double *numbers, const int32_t *whole) {
    memset(of, 0, sizeof *of);
    (void)whole;
    for (int k = 0; k < K; k++) {
        of->scale[k] = (WIDE)numbers[k];
#if BY_ENTRY
        of->scale[k] *= (WIDE)0x1p16; /* instead of 2^-16 for every entry's probability: exact */
#endif
#if !LINEAR
        of->weight[k] = (WIDE)numbers[K + k];
        of->first[k] = (WIDE)numbers[2 * K + 2 * k];
        of->second[k] = (WIDE)numbers[2 * K + 2 * k + 1];
#endif
#if RANDOM
        of->one[k] = (uint32_t)whole[2 * k];
        of->two[k] = (uint32_t)whole[2 * k + 1];
        of->two[k] ^= of->two[k] >> 15; /* an exclusive or commutes with the shift after it */
        of->limit[k] = (int32_t)of->first[k];
        of->second[k] *= (WIDE)0x1p-16; /* since ranks stay in the upper halves: exact */
#elif RANKED
        of->from[k] = (uint32_t)(int32_t)of->first[k] << 16;
        of->width[k] = (uint32_t)(of->second[k] - of->first[k]) << 16;
        of->limit[k] = (int32_t)((uint32_t)(int32_t)of->second[k] << 16);
#endif
    }
}

#if LINEAR
#define BASE_AT(read, i) 0
#define EXPERT(k) tensors[1 + k]
#else
#define BASE_AT(read, i) read(origin[i])
#define EXPERT(k) tensors[2 + k]
#endif
#define RANKS(k) tensors[2 + K + k]
#if RANKED
#define EACH_RANK(X) EACH(X)
#else
#define EACH_RANK(X)
#endif
#if RANDOM
#define EACH_UNIFORM(X) EACH(X)
#else
#define EACH_UNIFORM(X)
#endif

/* Writes the entries [start, stop), at most BLOCK of them, to an array of their own. The numbers
   are a copy, which no store can change: else a compiler that does not inline this, and reads them
   for every entry again, makes no vectors of it. */
static inline void entries(int32_t start, int32_t stop, void *const *tensors, void *to,
                           const struct numbers *given) {
    const struct numbers copy = *given, *const of = &copy;
    const int32_t n = stop - start;
    int32_t done = 0;
#if RANDOM /* Entry i takes half i & 1 of hash i >> 1; a whole number of vectors is the fastest. */
    uint32_t hashes[K][BLOCK / 2 + 16]; /* signed halves plus 2^15: their highest bits turned */
    const uint32_t first_hash = (uint32_t)start >> 1;
    const int32_t n_hashes = (((stop + 1) >> 1) - (int32_t)first_hash + 15) & ~15;
#define DRAW(k)                                                         \
    uint32_t counter_##k = first_hash * WEYL + of->one[k];              \
    for (int32_t j = 0; j < n_hashes; j++, counter_##k += WEYL) {       \
        const uint32_t word = hash(counter_##k, of->two[k]);            \
        hashes[k][j] = LOWER_FIRST(word) ^ 0x80008000u;                 \
    }
    EACH(DRAW)
#endif
#define UNIFORMS_FROM(k) const half *const u_##k = (const half *)hashes[k] + (start & 1);
    EACH_UNIFORM(UNIFORMS_FROM)
#if PAIRS
    {
        pair *const out = to;
#if !LINEAR
        const pair *const origin = (const pair *)((uint16_t *)tensors[1] + start);
#endif
#define PAIR_FROM(k) const pair *const x_##k = (const pair *)((uint16_t *)EXPERT(k) + start);
#define RANKS_FROM(k) const pair *const r_##k = (const pair *)((uint16_t *)RANKS(k) + start);
#define PAIR_OF(k) const pair *const v_##k = (const pair *)u_##k;
        EACH(PAIR_FROM)
        EACH_RANK(RANKS_FROM)
        EACH_UNIFORM(PAIR_OF)
        for (; done + LINE <= n; done += LINE) { /* the last entries are left */
            const int32_t line = done / 2;
#if RANKED /* So many streams at once are more than a core sees coming: six lines ahead. */
#define AHEAD(x) __builtin_prefetch((x) + line + 6 * LINE / 2);
#define EXPERT_AHEAD(k) AHEAD(x_##k)
#define RANKS_AHEAD(k) AHEAD(r_##k)
            AHEAD(origin)
            EACH(EXPERT_AHEAD)
            EACH(RANKS_AHEAD)
#endif
INDEPENDENT
            for (int32_t j = line; j < line + LINE / 2; j++) {
                WIDE low[K], high[K];
                uint32_t low_rank[K], high_rank[K], low_uniform[K], high_uniform[K];
#define LOWER(word) CAT(upper_, OUT)((word) << 16)
#define UPPER(word) CAT(upper_, OUT)(word)
#define READ(k) low[k] = LOWER(x_##k[j]), high[k] = UPPER(x_##k[j]);
#define READ_RANK(k) low_rank[k] = r_##k[j] << 16, high_rank[k] = r_##k[j];
#define READ_UNIFORM(k) low_uniform[k] = v_##k[j] << 16, high_uniform[k] = v_##k[j];
                EACH(READ)
                EACH_RANK(READ_RANK)
                EACH_UNIFORM(READ_UNIFORM)
                const WIDE first = merged(BASE_AT(LOWER, j), low, low_rank, low_uniform, of);
                const WIDE second = merged(BASE_AT(UPPER, j), high, high_rank, high_uniform, of);
                out[j] = CAT(to_upper_, OUT)(first) >> 16 | CAT(to_upper_, OUT)(second);
            }
        }
    }
#endif
    CAT(at_, OUT) *const out = to;
#if !LINEAR
    const CAT(at_, BASE) *const origin = (const CAT(at_, BASE) *)tensors[1] + start;
#endif
#define ENTRY_FROM(k) \
    const CAT(at_, TYPE_##k) *const e_##k = (const CAT(at_, TYPE_##k) *)EXPERT(k) + start;
#define RANK_FROM(k) const uint16_t *const s_##k = (const uint16_t *)RANKS(k) + start;
    EACH(ENTRY_FROM)
    EACH_RANK(RANK_FROM)
INDEPENDENT
    for (int32_t j = done; j < n; j++) {
        WIDE x[K];
        uint32_t rank[K], uniform[K];
#define READ_ENTRY(k) x[k] = CAT(load_, TYPE_##k)(e_##k[j]);
#define READ_ENTRY_RANK(k) rank[k] = (uint32_t)s_##k[j] << 16;
#define READ_ENTRY_UNIFORM(k) uniform[k] = (uint32_t)u_##k[j] << 16;
        EACH(READ_ENTRY)
        EACH_RANK(READ_ENTRY_RANK)
        EACH_UNIFORM(READ_ENTRY_UNIFORM)
        out[j] = CAT(store_, OUT)(merged(BASE_AT(CAT(load_, BASE), j), x, rank, uniform, of));
    }
}

/* Copies a block past the cache: a line that is written whole need not be read from memory. */
static inline void stream(void *to, const void *block) {
#if defined(__AVX512F__)
    for (int i = 0; i < BLOCK * WIDTH / 64; i++)
        _mm512_stream_si512((__m512i *)to + i, ((const __m512i *)block)[i]);
#elif defined(__AVX__)
    for (int i = 0; i < BLOCK * WIDTH / 32; i++)
        _mm256_stream_si256((__m256i *)to + i, ((const __m256i *)block)[i]);
#elif defined(__SSE2__)
    for (int i = 0; i < BLOCK * WIDTH / 16; i++)
        _mm_stream_si128((__m128i *)to + i, ((const __m128i *)block)[i]);
#else
    memcpy(to, block, BLOCK * WIDTH);
#endif
}

/* Entries [start, stop) of flat tensors: what is written first, then as kernels.py orders them. */
void merge(int32_t start, int32_t stop, void *const *tensors, const double *numbers,
           const int32_t *whole) {
    struct numbers of;
    read_numbers(&of, numbers, whole);
    CAT(at_, OUT) block[BLOCK] __attribute__((aligned(64)));
    CAT(at_, OUT) *const out = tensors[0];
    const int large = (int64_t)(stop - start) * WIDTH >= LARGE;
    /* The first block ends where a line of the cache does. */
    int32_t end = start + (int32_t)(-(uintptr_t)(out + start) % 64) / WIDTH;
    for (int32_t i = start; i < stop; i = end, end = i + BLOCK) {
        end = end < stop ? end : stop;
        const int streamed = large && end - i == BLOCK;
        entries(i, end, tensors, streamed ? block : out + i, &of);
        if (streamed)
            stream(out + i, block);
    }
#ifdef __SSE2__
    _mm_sfence();
#endif
}
