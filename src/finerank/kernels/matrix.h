// Products of small matrices that lie in the first-level cache, in vector registers.

#pragma once

#include <omp.h>

#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
constexpr int BYTES = 64;
#else
constexpr int BYTES = 32;
#endif

#define INLINED __attribute__((always_inline))
#define INLINE inline INLINED

template <class T>
struct Vector {
    typedef T type __attribute__((vector_size(BYTES), aligned(sizeof(T)), may_alias));
    static constexpr int length = BYTES / sizeof(T);
};

// How products of elements E are summed: sum += a · b[0], a · b[1], ... (bf16.h: of two terms at once).
template <class E>
struct Terms {
    using Sum = typename Vector<E>::type;
    using Row = Sum;
    static constexpr int length = Vector<E>::length;
    static INLINE Row row(const E* b) { return *reinterpret_cast<const Row*>(b); }
    static INLINE void add(Sum& sum, E a, Row b) { sum += a * b; }
};

// A left factor: element (r, d) is at[r * by_row + d * by_term].
template <class E>
struct Left {
    const E* at;
    std::int64_t by_row, by_term;
};

// A·B for R rows and C vectors, in R·C registers, over D terms. B [D, N] is contiguous. begin(r, h): what the sum of row r,
// columns h.. starts from. end(r, h, sums): takes those of R rows from r on, so that what follows happens in registers.
template <int R, int C, class E, class Begin, class End>
INLINE void tile(std::int64_t row, std::int64_t column, std::int64_t N, std::int64_t D, Left<E> a, const E* b, Begin begin,
                 End end) {
    using P = Terms<E>;
    typename P::Sum sum[C][R];
    a.at += row * a.by_row, b += column;
#pragma GCC unroll 8
    for (int j = 0; j < C; j++)
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) sum[j][r] = begin(row + r, column + j * P::length);
    for (std::int64_t d = 0; d < D; d++) {
        typename P::Row of[C];
#pragma GCC unroll 8
        for (int j = 0; j < C; j++) of[j] = P::row(b + d * N + j * P::length);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const E value = a.at[r * a.by_row + d * a.by_term];
#pragma GCC unroll 8
            for (int j = 0; j < C; j++) P::add(sum[j][r], value, of[j]);
        }
    }
#pragma GCC unroll 8
    for (int j = 0; j < C; j++) end(row, column + j * P::length, sum[j]);
}

// Never inlined: within a long function the loop of `tile` loses its registers to what surrounds it.
template <int R, class E, class Begin, class End>
__attribute__((noinline)) void rows(std::int64_t row, std::int64_t N, std::int64_t D, Left<E> a, const E* b, Begin& begin, End& end) {
    constexpr int length = Terms<E>::length, most = BYTES == 64 || R <= 2 ? 4 : 2;  // there are 32 registers, or 16
    std::int64_t j = 0;
    for (; j + most * length <= N; j += most * length) tile<R, most>(row, j, N, D, a, b, begin, end);
    if constexpr (most == 4)
        if (j + 2 * length <= N) tile<R, 2>(row, j, N, D, a, b, begin, end), j += 2 * length;
    if (j < N) tile<R, 1>(row, j, N, D, a, b, begin, end);
}

// A·B for M rows and N columns, a multiple of the vector's length, in tiles of at most six rows that are about equal.
// even: M is, and so are the rows of every tile.
template <bool even = false, class E, class Begin, class End>
void multiply(std::int64_t M, std::int64_t N, std::int64_t D, Left<E> a, const E* b, Begin begin, End end) {
    constexpr std::int64_t unit = even ? 2 : 1;
    const std::int64_t parts = (M + 5) / 6;
    for (std::int64_t part = 0, low = 0, high = 0; part < parts; part++, low = high) {
        high = M / unit * (part + 1) / parts * unit;
        switch (high - low) {
            case 2: rows<2>(low, N, D, a, b, begin, end); break;
            case 4: rows<4>(low, N, D, a, b, begin, end); break;
            case 6: rows<6>(low, N, D, a, b, begin, end); break;
            default:
                if constexpr (!even) switch (high - low) {
                    case 1: rows<1>(low, N, D, a, b, begin, end); break;
                    case 3: rows<3>(low, N, D, a, b, begin, end); break;
                    case 5: rows<5>(low, N, D, a, b, begin, end);
                }
        }
    }
}

// C [M, N] += A·B
template <class S, class E>
void accumulate(std::int64_t M, std::int64_t N, std::int64_t D, Left<E> a, const E* b, S* c) {
    using V = typename Vector<S>::type;
    auto at = [=](std::int64_t r, std::int64_t h) INLINED { return reinterpret_cast<V*>(c + r * N + h); };
    multiply(
        M, N, D, a, b, [=](std::int64_t r, std::int64_t h) INLINED { return (typename Terms<E>::Sum)*at(r, h); },
        [=](std::int64_t r, std::int64_t h, auto& sums) INLINED {
            int i = 0;
            for (auto& sum : sums) *at(r + i++, h) = (V)sum;
        });
}

template <class T>
void transpose(std::int64_t M, std::int64_t N, const T* from, T* to) {
    for (std::int64_t i = 0; i < M; i++)
        for (std::int64_t j = 0; j < N; j++) to[j * M + i] = from[i * N + j];
}
