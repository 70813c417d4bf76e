// SPDX-License-Identifier: Apache-2.0
// Product of a Toeplitz matrix and a vector over GF(2), on words of 64 bits, without look-up
// tables or branches on the data.
//
// The block of 64 x 64 bits in row I and column J has its diagonals in the words I - J + columns - 1
// and I - J + columns of the seed (keyrail.distil.toeplitz.Geometry), so a row of blocks is the
// middle of a product of polynomials: carry-less multiplications. Squares of BASE blocks are
// multiplied out; larger ones are split in three of half the size (Fan and Hasan, IEEE Trans.
// Computers 56(2), 2007).

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>

#if defined(__PCLMUL__) && defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__ARM_FEATURE_AES)
#include <arm_neon.h>
#endif

namespace {

using Word = std::uint64_t;

struct Product {
    Word low, high;
};

#if defined(__PCLMUL__) && defined(__SSE2__)
constexpr char ARITHMETIC[] =
#if defined(__VPCLMULQDQ__) && defined(__AVX2__)
    "vpclmulqdq";
#else
    "pclmulqdq";
#endif

inline Product multiply(Word a, Word b) {
    const __m128i p = _mm_clmulepi64_si128(_mm_cvtsi64_si128(static_cast<long long>(a)),
                                           _mm_cvtsi64_si128(static_cast<long long>(b)), 0);
    return {static_cast<Word>(_mm_cvtsi128_si64(p)),
            static_cast<Word>(_mm_cvtsi128_si64(_mm_unpackhi_epi64(p, p)))};
}
#elif defined(__aarch64__) && defined(__ARM_FEATURE_AES)
constexpr char ARITHMETIC[] = "pmull";

inline Product multiply(Word a, Word b) {
    const uint64x2_t p = vreinterpretq_u64_p128(vmull_p64(a, b));
    return {vgetq_lane_u64(p, 0), vgetq_lane_u64(p, 1)};
}
#else
#error "no carry-less multiplication"
#endif

// A row of blocks is coefficients 63 to 126 of the sum of its products, of which the upper come
// from the next sum.
inline Word row_of(Product sum, Word next_low) {
    return (sum.low >> 63 | sum.high << 1) ^ next_low << 1;
}

// y ^= T x for BASE x BASE blocks; t holds 2 BASE words.
template <int BASE>
inline void multiply_out(const Word *t, const Word *x, Word *y) {
    Product sums[BASE + 1];
    int row = 0;
#if defined(__VPCLMULQDQ__) && defined(__AVX2__) && defined(__PCLMUL__)
    // Four rows at once: rows 0 and 2 in the halves of one register, rows 1 and 3 in another.
    for (; row + 4 <= BASE + 1; row += 4) {
        __m256i even = _mm256_setzero_si256(), odd = even;
        for (int j = 0; j < BASE; j++) {
            const __m256i vector = _mm256_set1_epi64x(static_cast<long long>(x[j]));
            const __m256i words = _mm256_loadu_si256(
                reinterpret_cast<const __m256i *>(t + row - j + BASE - 1));
            even = _mm256_xor_si256(even, _mm256_clmulepi64_epi128(words, vector, 0x00));
            odd = _mm256_xor_si256(odd, _mm256_clmulepi64_epi128(words, vector, 0x01));
        }
        alignas(32) Product pairs[4];
        _mm256_store_si256(reinterpret_cast<__m256i *>(pairs), even);
        _mm256_store_si256(reinterpret_cast<__m256i *>(pairs + 2), odd);
        sums[row] = pairs[0], sums[row + 1] = pairs[2];
        sums[row + 2] = pairs[1], sums[row + 3] = pairs[3];
    }
#endif
    for (; row <= BASE; row++) {
        Product sum{0, 0};
        for (int j = 0; j < BASE; j++) {
            const Product p = multiply(t[row - j + BASE - 1], x[j]);
            sum.low ^= p.low;
            sum.high ^= p.high;
        }
        sums[row] = sum;
    }
    for (int i = 0; i < BASE; i++)
        y[i] ^= row_of(sums[i], sums[i + 1].low);
}

// y ^= T x for size x size blocks, size = BASE 2^k; t holds 2 size words, work 4 size.
template <int BASE>
void accumulate(const Word *t, const Word *x, Word *y, std::size_t size, Word *work) {
    if (size == BASE) {
        multiply_out<BASE>(t, x, y);
        return;
    }
    const std::size_t half = size / 2;
    const Word *on = t + half, *below = t + size, *above = t;
    Word *vector = work, *middle = work + half, *matrix = work + size, *rest = work + 2 * size;
    for (std::size_t i = 0; i < half; i++) {
        vector[i] = x[i] ^ x[half + i];
        middle[i] = 0;
    }
    accumulate<BASE>(on, vector, middle, half, rest);
    for (std::size_t i = 0; i < size; i++)
        matrix[i] = on[i] ^ below[i];
    accumulate<BASE>(matrix, x, y + half, half, rest);
    for (std::size_t i = 0; i < size; i++)
        matrix[i] = on[i] ^ above[i];
    accumulate<BASE>(matrix, x + half, y, half, rest);
    for (std::size_t i = 0; i < half; i++) {
        y[i] ^= middle[i];
        y[half + i] ^= middle[i];
    }
}

using Accumulate = void (*)(const Word *, const Word *, Word *, std::size_t, Word *);
constexpr std::size_t SMALLEST = 5, LARGEST = 9;
constexpr Accumulate OF_SIZE[] = {accumulate<5>, accumulate<6>, accumulate<7>, accumulate<8>,
                                  accumulate<9>};

// Squares that cover the matrix at the least cost.
struct Cover {
    std::size_t base, size;
};

Cover cover(std::size_t rows, std::size_t columns) {
    Cover best{SMALLEST, SMALLEST};
    double least = 0;
    for (std::size_t base = SMALLEST; base <= LARGEST; base++) {
        // A split costs three squares of half the size, and sums.
        double cost = static_cast<double>(base * (base + 1));
        for (std::size_t size = base;; size *= 2) {
            const std::size_t down = (rows + size - 1) / size, along = (columns + size - 1) / size;
            const double all = cost * static_cast<double>(down) * static_cast<double>(along);
            if (least == 0 || all < least) {
                least = all;
                best = {base, size};
            }
            if (down == 1 && along == 1)
                break;
            cost = 3 * cost + 2.0 * static_cast<double>(size);
        }
    }
    return best;
}

// Memory that is overwritten when it is given back.
class Memory {
  public:
    explicit Memory(std::size_t words) : words_(words), data_(new (std::nothrow) Word[words]()) {}
    ~Memory() {
        if (data_) {
            volatile Word *secret = data_;
            for (std::size_t i = 0; i < words_; i++)
                secret[i] = 0;
        }
        delete[] data_;
    }
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;
    Word *data() const { return data_; }

  private:
    std::size_t words_;
    Word *data_;
};

}  // namespace

extern "C" {

// How words are multiplied.
const char *keyrail_toeplitz_arithmetic() { return ARITHMETIC; }

// output = T key for rows x columns blocks of 64 x 64 bits: rows words from columns words of key
// and columns + rows words of seed. 0, or 1 if there is no memory for it.
int keyrail_toeplitz_product(const Word *seed, const Word *key, Word *output, std::size_t rows,
                             std::size_t columns) {
    const Cover squares = cover(rows, columns);
    const std::size_t size = squares.size;
    const std::size_t down = (rows + size - 1) / size, along = (columns + size - 1) / size;
    // Words of seed beyond the matrix meet zeros of the key or rows that are not given out.
    Memory seeds(columns + rows + 3 * size), keys(along * size), sums(down * size), work(4 * size);
    if (!seeds.data() || !keys.data() || !sums.data() || !work.data())
        return 1;
    std::memcpy(seeds.data() + size, seed, (columns + rows) * sizeof(Word));
    std::memcpy(keys.data(), key, columns * sizeof(Word));
    for (std::size_t i = 0; i < down; i++)
        for (std::size_t j = 0; j < along; j++)
            OF_SIZE[squares.base - SMALLEST](seeds.data() + columns + (i - j) * size,
                                             keys.data() + j * size, sums.data() + i * size, size,
                                             work.data());
    std::memcpy(output, sums.data(), rows * sizeof(Word));
    return 0;
}
}
