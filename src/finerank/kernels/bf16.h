// Products of small matrices in bf16, summed in float: the instruction multiplies two neighbouring terms at once, so both
// operands are of `two`s, a pair of bf16 numbers, the even term in the low half.

#pragma once

#ifdef __AVX512BF16__

#include <immintrin.h>

#include <cstdint>

using two = std::uint32_t;
using half = std::uint16_t;

inline __m512 expand(const half* at) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

inline __m256i rounded(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

inline void put(half* at, __m256i x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), x); }

// Two rows, rounded, woven into one row of twos.
inline void weave(two* at, __m256i even, __m256i odd) {
    const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16);
    _mm512_storeu_si512(at, _mm512_or_si512(_mm512_cvtepu16_epi32(even), high));
}

template <int R, int C, bool add>
inline __attribute__((always_inline)) void tile(std::int64_t D, const two* a, std::int64_t by_row, std::int64_t by_term,
                                                const two* b, float* c, std::int64_t N) {
    __m512 sum[R][C];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int j = 0; j < C; j++) sum[r][j] = add ? _mm512_loadu_ps(c + r * N + j * 16) : _mm512_setzero_ps();
    for (std::int64_t d = 0; d < D; d++) {
        __m512bh row[C];
#pragma GCC unroll 8
        for (int j = 0; j < C; j++) row[j] = (__m512bh)_mm512_loadu_si512(b + d * N + j * 16);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const __m512bh value = (__m512bh)_mm512_set1_epi32(static_cast<int>(a[r * by_row + d * by_term]));
#pragma GCC unroll 8
            for (int j = 0; j < C; j++) sum[r][j] = _mm512_dpbf16_ps(sum[r][j], value, row[j]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int j = 0; j < C; j++) _mm512_storeu_ps(c + r * N + j * 16, sum[r][j]);
}

template <int R, bool add>
void rows(std::int64_t N, std::int64_t D, const two* a, std::int64_t by_row, std::int64_t by_term, const two* b, float* c) {
    std::int64_t j = 0;
    for (; j + 64 <= N; j += 64) tile<R, 4, add>(D, a, by_row, by_term, b + j, c + j, N);
    for (; j + 32 <= N; j += 32) tile<R, 2, add>(D, a, by_row, by_term, b + j, c + j, N);
    for (; j < N; j += 16) tile<R, 1, add>(D, a, by_row, by_term, b + j, c + j, N);
}

// C[M, N] = A·B, or += where `add`, over D twos. Element (r, d) of A is a[r * by_row + d * by_term]; B [D, N] and C are
// contiguous; N is a multiple of 16.
template <bool add>
void multiply(std::int64_t M, std::int64_t N, std::int64_t D, const two* a, std::int64_t by_row, std::int64_t by_term,
              const two* b, float* c) {
    const std::int64_t parts = (M + 5) / 6;
    for (std::int64_t part = 0; part < parts; part++) {
        const std::int64_t low = M * part / parts, high = M * (part + 1) / parts;
        const two* at = a + low * by_row;
        float* to = c + low * N;
        switch (high - low) {
            case 1: rows<1, add>(N, D, at, by_row, by_term, b, to); break;
            case 2: rows<2, add>(N, D, at, by_row, by_term, b, to); break;
            case 3: rows<3, add>(N, D, at, by_row, by_term, b, to); break;
            case 4: rows<4, add>(N, D, at, by_row, by_term, b, to); break;
            case 5: rows<5, add>(N, D, at, by_row, by_term, b, to); break;
            default: rows<6, add>(N, D, at, by_row, by_term, b, to);
        }
    }
}

#endif
