// Products in bf16, summed in float: the instruction multiplies two neighbouring terms at once, so both factors are of
// `two`s, a pair of bf16 numbers, the even term in the low half.

#pragma once

#ifdef __AVX512BF16__

#include <immintrin.h>

#include "matrix.h"

using two = std::uint32_t;
using half = std::uint16_t;

template <>
struct Terms<two> {
    using Sum = __m512;
    using Row = __m512bh;
    static constexpr int length = 16;
    static INLINE Row row(const two* b) { return (__m512bh)_mm512_loadu_si512(b); }
    static INLINE void add(Sum& sum, two a, Row b) {
        sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(static_cast<int>(a)), b);
    }
};

// Sixteen numbers of an even row and of the odd row after it, rounded: one row after the other.
INLINE __m512i rounded(__m512 even, __m512 odd) { return (__m512i)_mm512_cvtne2ps_pbh(odd, even); }

// The same woven into twos, as a product over rows takes them.
INLINE __m512i woven(__m512i rows) {
    const __m512i index = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4,
                                           19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(index, rows);
}

INLINE __m512 even_row(__m512i woven) { return _mm512_castsi512_ps(_mm512_slli_epi32(woven, 16)); }
INLINE __m512 odd_row(__m512i woven) { return _mm512_castsi512_ps(_mm512_and_si512(woven, _mm512_set1_epi32(-65536))); }

INLINE __m512i load_twos(const two* at) { return _mm512_loadu_si512(at); }
INLINE void put(two* at, __m512i x) { _mm512_storeu_si512(at, x); }

// Two rows one after the other into rows of a matrix of halves.
INLINE void put_rows(half* at, std::int64_t width, __m512i rows) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm512_castsi512_si256(rows));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at + width), _mm512_extracti64x4_epi64(rows, 1));
}

// The twos of neighbouring rows of a matrix [rows, N] of floats, and (null: not wanted) its rows rounded; an odd row out gets a
// row of zeros.
inline void weave(std::int64_t rows, std::int64_t N, const float* from, two* twos, half* halves) {
    for (std::int64_t i = 0; i < rows; i += 2)
        for (std::int64_t j = 0; j < N; j += 16) {
            const __m512 odd = i + 1 < rows ? _mm512_loadu_ps(from + (i + 1) * N + j) : _mm512_setzero_ps();
            const __m512i both = rounded(_mm512_loadu_ps(from + i * N + j), odd);
            if (twos) put(twos + i / 2 * N + j, woven(both));
            if (halves) put_rows(halves + i * N + j, N, both);
        }
}

#endif
