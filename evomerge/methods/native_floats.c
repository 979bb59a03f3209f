/* Reading and writing numbers of 16, 32 and 64 bits: what native.c begins with. */

#include <stdint.h>
#include <string.h>

#define CAT_(a, b) a##b
#define CAT(a, b) CAT_(a, b)

typedef uint16_t at_bfloat16;
typedef uint16_t at_float16;
typedef float at_float32;
typedef double at_float64;
typedef uint32_t __attribute__((may_alias, aligned(2))) pair; /* two 16-bit numbers */
typedef uint16_t __attribute__((may_alias)) half;

/* The same bits as another type. */
#define PUN(name, TO, FROM)          \
    static inline TO name(FROM x) {  \
        TO y;                        \
        memcpy(&y, &x, sizeof y);    \
        return y;                    \
    }
PUN(bits_of, uint32_t, float)
PUN(float_of, float, uint32_t)
PUN(wide_bits, BITS, WIDE)
PUN(wide_of, WIDE, BITS)

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
