/* One pass over the entries of a merge: weighted sums, and the formula of sparse_kernel.py.

   methods/native.py writes these macros in front; another set of them is another library:

   OUT, BASE, TYPE_0, TYPE_1, ...   dtypes of what is written, the base, the experts (or terms)
   WIDE, BITS                       what is computed in: float or double; uint32_t or uint64_t
   PAIRS                            whether all dtypes are bfloat16, or all float16
   K, EACH(X), REST(X)              number of experts; X(0) X(1) ...; the same without X(0)
   LINEAR                           a weighted sum of K terms; then all of the following are 0
   RANDOM, RANKED, BY_ENTRY, BOUNDED, NORMALIZE, ELECTION   see Form; 1 is weighted, 2 is paper

   There is no branch in a loop, and every operation is rounded as the eager form rounds it, so
   that a vectorising compiler (with -ffp-contract=off) gives the same weights. */

#include <stdint.h>
#include <string.h>

#define CAT_(a, b) a##b
#define CAT(a, b) CAT_(a, b)
#ifdef __clang__ /* no entry is read after another is written */
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif
#define WEYL 0x9e3779b9u /* as in counter.py, whose signed numbers are these modulo 2^32 */
#define SIGN ((BITS)1 << (8 * sizeof(BITS) - 1))

typedef uint16_t at_bfloat16;
typedef uint16_t at_float16;
typedef float at_float32;
typedef double at_float64;
typedef uint32_t __attribute__((may_alias, aligned(2))) pair; /* two 16-bit numbers */

static inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline BITS wide_bits(WIDE x) {
    BITS bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline WIDE wide_of(BITS bits) {
    WIDE x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* upper_...: a 16-bit number in the upper half of a word, whatever is in the lower one; or that
   half, zeros below it. */
static inline WIDE upper_bfloat16(uint32_t word) { return (WIDE)float_of(word & 0xffff0000u); }

static inline WIDE upper_float16(uint32_t word) {
    const uint32_t size = (word >> 3) & 0x0fffe000u;
    /* 2^112 is the difference of the exponents' biases; it makes subnormals normal, too. */
    const uint32_t number = bits_of(float_of(size) * 0x1p112f);
    const uint32_t bits = size >= 0x0f800000u ? size | 0x7f800000u : number; /* infinity, NaN */
    return (WIDE)float_of(bits | (word & 0x80000000u));
}

/* To nearest, ties to even: a carry out of the bits that are cut is the step up. */
static inline uint32_t to_upper_bfloat16(WIDE wide) {
    const uint32_t bits = bits_of((float)wide);
    const uint32_t near = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
#if PAIRS
    return near; /* A NaN stays one: its lower half is 0, as those of the numbers read. */
#else
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc00000 : near;
#endif
}

static inline uint32_t to_upper_float16(WIDE wide) {
    const uint32_t bits = bits_of((float)wide), size = bits & 0x7fffffff;
    const uint32_t normal = (size - (112u << 23) + 0xfff + ((size >> 13) & 1)) >> 13;
    /* Below 2^-14 halves are multiples of 2^-24, the last place of the fp32 numbers at 0.5. */
    const uint32_t small = bits_of(float_of(size) + 0.5f) - bits_of(0.5f);
    uint32_t half = size < (113u << 23) ? small : normal;
    half = size >= (143u << 23) ? 0x7c00 : half;
    half = size > 0x7f800000 ? 0x7e00 : half;
    return half << 16 | (bits & 0x80000000u);
}

static inline WIDE load_bfloat16(at_bfloat16 x) { return upper_bfloat16((uint32_t)x << 16); }
static inline WIDE load_float16(at_float16 x) { return upper_float16((uint32_t)x << 16); }
static inline WIDE load_float32(at_float32 x) { return (WIDE)x; }
static inline WIDE load_float64(at_float64 x) { return (WIDE)x; }
static inline at_bfloat16 store_bfloat16(WIDE x) { return to_upper_bfloat16(x) >> 16; }
static inline at_float16 store_float16(WIDE x) { return to_upper_float16(x) >> 16; }
static inline at_float32 store_float32(WIDE x) { return (at_float32)x; }
static inline at_float64 store_float64(WIDE x) { return (at_float64)x; }

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
    WIDE scale[K], weight[K], first[K], second[K], last;
    uint32_t one[K], two[K], from[K], width[K], limit[K];
};

/* One entry. x: experts or terms. rank: in the upper halves of words. counter: its Weyl number. */
static inline WIDE merged(WIDE base, const WIDE *x, const uint32_t *rank, uint32_t counter,
                          const struct numbers *of) {
    (void)base, (void)rank, (void)counter;
#if LINEAR
    WIDE sum = x[0] * of->scale[0];
#define ADD(k) sum += x[k] * of->scale[k];
    REST(ADD)
    return sum;
#else
    WIDE t[K];
#define DELTA(k) t[k] = x[k] - base;
    EACH(DELTA)
#if RANDOM
#define UNIFORM(k) const uint32_t u_##k = hash(counter + of->one[k], of->two[k]) >> 8;
    EACH(UNIFORM)
#if RANKED
#define BOUND(k) const WIDE bound_##k = (WIDE)(int32_t)(rank[k] >> 16) * of->second[k] + of->first[k];
    EACH(BOUND)
#if BY_ENTRY
#define RESCALE(k) t[k] /= at_least_one(bound_##k);
    EACH(RESCALE)
#endif
#define KEEP(k) t[k] = (WIDE)(int32_t)u_##k < bound_##k ? t[k] : 0;
#else
#define KEEP(k) t[k] = u_##k < of->limit[k] ? t[k] : 0;
#endif
    EACH(KEEP)
#elif RANKED
#if BOUNDED
#define KEEP(k) t[k] = rank[k] - of->from[k] < of->width[k] ? t[k] : 0;
#else
#define KEEP(k) t[k] = rank[k] < of->width[k] ? t[k] : 0;
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
    return sum * of->last + base;
#else
    /* Votes against the sum become 0; as whole numbers floats are ordered as they are. */
    const BITS sign = wide_bits(sum) & SIGN;
#define VOTE(k)                                         \
    const BITS vote_##k = wide_bits(t[k]) ^ sign;       \
    t[k] = wide_of((SIGNED)vote_##k < 0 ? 0 : vote_##k);
    EACH(VOTE)
#if NORMALIZE
    WIDE share = t[0] > 0 ? of->weight[0] : 0;
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
    return (sum / share) * wide_of(wide_bits(of->last) ^ sign) + base;
#endif
#endif
}

static inline uint32_t whole_above(WIDE x) {
    const uint32_t below = (uint32_t)x;
    return (WIDE)below < x ? below + 1 : below;
}

static void read_numbers(struct numbers *of, const double *numbers, const int32_t *whole) {
    memset(of, 0, sizeof *of);
    (void)whole;
    for (int k = 0; k < K; k++) {
        of->scale[k] = (WIDE)numbers[k];
#if BY_ENTRY
        of->scale[k] *= (WIDE)0x1p24; /* instead of 2^-24 for every entry's probability: exact */
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
        of->limit[k] = whole_above(of->first[k]);
#elif RANKED
        of->from[k] = (uint32_t)of->first[k] << 16;
        of->width[k] = (uint32_t)(of->second[k] - of->first[k]) << 16;
#endif
    }
#if !LINEAR
    of->last = (WIDE)numbers[4 * K];
#endif
}

/* Entries [start, stop) of flat tensors: what is written first, then as kernels.py orders them. */
void merge(int32_t start, int32_t stop, void *const *tensors, const double *numbers,
           const int32_t *whole) {
    struct numbers of;
    read_numbers(&of, numbers, whole);
    int32_t i = start;
    uint32_t counter = (uint32_t)start * WEYL;
#define NONE(k)
#if LINEAR
#define BASE_AT(read, i) 0
#define EXPERT(k) tensors[1 + k]
#else
#define BASE_AT(read, i) read(origin[i])
#define EXPERT(k) tensors[2 + k]
#endif
#if RANKED
#define EACH_RANK(X) EACH(X)
#else
#define EACH_RANK(X)
#endif
#if PAIRS
    {
        pair *const out = (pair *)((uint16_t *)tensors[0] + start);
        const int32_t n = (stop - start) / 2;
#if !LINEAR
        const pair *const origin = (const pair *)((uint16_t *)tensors[1] + start);
#endif
#define PAIR_FROM(k) const pair *const x_##k = (const pair *)((uint16_t *)EXPERT(k) + start);
#define RANKS_FROM(k) const pair *const r_##k = (const pair *)((uint16_t *)tensors[2 + K + k] + start);
        EACH(PAIR_FROM)
        EACH_RANK(RANKS_FROM)
INDEPENDENT
        for (int32_t j = 0; j < n; j++) {
            WIDE low[K], high[K];
            uint32_t low_rank[K], high_rank[K];
#define LOWER(word) CAT(upper_, OUT)((word) << 16)
#define UPPER(word) CAT(upper_, OUT)(word)
#define READ(k) low[k] = LOWER(x_##k[j]), high[k] = UPPER(x_##k[j]);
#define READ_RANK(k) low_rank[k] = r_##k[j] << 16, high_rank[k] = r_##k[j];
            EACH(READ)
            EACH_RANK(READ_RANK)
            const WIDE first = merged(BASE_AT(LOWER, j), low, low_rank, counter, &of);
            const WIDE second = merged(BASE_AT(UPPER, j), high, high_rank, counter + WEYL, &of);
            out[j] = CAT(to_upper_, OUT)(first) >> 16 | CAT(to_upper_, OUT)(second);
            counter += 2 * WEYL;
        }
        i += 2 * n; /* an odd last entry is left */
    }
#endif
    CAT(at_, OUT) *const out = tensors[0];
#if !LINEAR
    const CAT(at_, BASE) *const origin = tensors[1];
#endif
#define ENTRY_FROM(k) const CAT(at_, TYPE_##k) *const e_##k = EXPERT(k);
#define RANK_FROM(k) const uint16_t *const s_##k = tensors[2 + K + k];
    EACH(ENTRY_FROM)
    EACH_RANK(RANK_FROM)
INDEPENDENT
    for (int32_t j = i; j < stop; j++) {
        WIDE x[K];
        uint32_t rank[K];
#define READ_ENTRY(k) x[k] = CAT(load_, TYPE_##k)(e_##k[j]);
#define READ_ENTRY_RANK(k) rank[k] = (uint32_t)s_##k[j] << 16;
        EACH(READ_ENTRY)
        EACH_RANK(READ_ENTRY_RANK)
        out[j] = CAT(store_, OUT)(merged(BASE_AT(CAT(load_, BASE), j), x, rank, counter, &of));
        counter += WEYL;
    }
}
