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

template <class T>
struct Vector {
    typedef T type __attribute__((vector_size(BYTES), aligned(sizeof(T)), may_alias));
    static constexpr int length = BYTES / sizeof(T);
};

// C[R rows, C vectors] (+)= A·B over D terms, in R·C registers. Element (r, d) of A is a[r * by_row + d * by_term].
template <class T, int R, int C, bool add>
inline __attribute__((always_inline)) void tile(std::int64_t D, const T* a, std::int64_t by_row, std::int64_t by_term, const T* b,
                                                T* c, std::int64_t N) {
    using V = typename Vector<T>::type;
    constexpr int length = Vector<T>::length;
    V sum[R][C];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int j = 0; j < C; j++) sum[r][j] = add ? *(const V*)(c + r * N + j * length) : V{};
    for (std::int64_t d = 0; d < D; d++) {
        V row[C];
#pragma GCC unroll 8
        for (int j = 0; j < C; j++) row[j] = *(const V*)(b + d * N + j * length);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const T value = a[r * by_row + d * by_term];
#pragma GCC unroll 8
            for (int j = 0; j < C; j++) sum[r][j] += value * row[j];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int j = 0; j < C; j++) *(V*)(c + r * N + j * length) = sum[r][j];
}

template <class T, int R, int C, bool add>
void rows(std::int64_t N, std::int64_t D, const T* a, std::int64_t by_row, std::int64_t by_term, const T* b, T* c) {
    constexpr int wide = C * Vector<T>::length;
    std::int64_t j = 0;
    for (; j + wide <= N; j += wide) tile<T, R, C, add>(D, a, by_row, by_term, b + j, c + j, N);
    for (; j < N; j += Vector<T>::length) tile<T, R, 1, add>(D, a, by_row, by_term, b + j, c + j, N);
}

// C[M, N] = A·B, or += where `add`. B [D, N] and C are contiguous; N is a multiple of the vector's length.
template <class T, bool add>
void multiply(std::int64_t M, std::int64_t N, std::int64_t D, const T* a, std::int64_t by_row, std::int64_t by_term, const T* b,
              T* c) {
    const std::int64_t parts = (M + 5) / 6;  // tiles of at most six rows, all about equal
    for (std::int64_t part = 0; part < parts; part++) {
        const std::int64_t low = M * part / parts, high = M * (part + 1) / parts;
        const T* at = a + low * by_row;
        T* to = c + low * N;
        switch (high - low) {
            case 1: rows<T, 1, 4, add>(N, D, at, by_row, by_term, b, to); break;
            case 2: rows<T, 2, 4, add>(N, D, at, by_row, by_term, b, to); break;
            case 3: rows<T, 3, 2, add>(N, D, at, by_row, by_term, b, to); break;
            case 4: rows<T, 4, 2, add>(N, D, at, by_row, by_term, b, to); break;
            case 5: rows<T, 5, 2, add>(N, D, at, by_row, by_term, b, to); break;
            default: rows<T, 6, 2, add>(N, D, at, by_row, by_term, b, to);
        }
    }
}

template <class T>
void transpose(std::int64_t M, std::int64_t N, const T* from, T* to) {
    for (std::int64_t i = 0; i < M; i++)
        for (std::int64_t j = 0; j < N; j++) to[j * M + i] = from[i * N + j];
}
