// What the activation unit's loops share, in float and in bf16: see unit.cpp for the letters.

#pragma once

#include <cstdint>
#include <vector>

#include "matrix.h"

namespace {

using i64 = std::int64_t;

struct Range {
    i64 low, high;
};

// The candidates of one thread: about equal pairs for all, never cutting a run of candidates with the same history.
Range share(i64 N, const i64* first, const i64* count, int thread, int threads) {
    constexpr i64 each = 4;  // what a candidate costs beside its pairs, in pairs
    i64 total = 0;
    for (i64 n = 0; n < N; n++) total += count[n] + each;
    auto bound = [&](int part) {
        i64 n = 0;
        for (i64 sum = 0; n < N && sum < total * part / threads; n++) sum += count[n] + each;
        while (part && n && n < N && first[n] == first[n - 1]) n++;
        return n;
    };
    return {bound(thread), thread + 1 == threads ? N : bound(thread + 1)};
}

template <class T>
using V = typename Vector<T>::type;
template <class T>
constexpr i64 LENGTH = Vector<T>::length;

template <class T>
inline V<T> load(const T* at) {
    return *reinterpret_cast<const V<T>*>(at);
}

template <class T>
inline void store(T* at, V<T> value) {
    *reinterpret_cast<V<T>*>(at) = value;
}

template <class T>
inline V<T> active(V<T> z, V<T> slope) {
    return z > 0 ? z : slope * z;
}

// The gradients of A, B (added) and q (set) from that of M.
template <class T>
void scaled_backward(i64 rows, i64 K, const T* B, const T* q, const T* dM, T* dA, T* dB, T* dq) {
    for (i64 i = 0; i < K; i += LENGTH<T>) {
        const V<T> qi = load(q + i);
        V<T> sum = {};
        for (i64 h = 0; h < rows; h++) {
            const V<T> m = load(dM + h * K + i);
            store(dA + h * K + i, load(dA + h * K + i) + m);
            store(dB + h * K + i, load(dB + h * K + i) + m * qi);
            sum += m * load(B + h * K + i);
        }
        store(dq + i, sum);
    }
}

// Gradients of everything that all candidates share; laid out as the caller's flat buffer.
template <class T>
struct Shared {
    T *A, *B, *slope;
    std::vector<T*> W, b, s;
    T *w, *bias;

    Shared(T* at, i64 K, i64 L, const i64* H) {
        A = at, at += H[0] * K;
        B = at, at += H[0] * K;
        slope = at, at += H[0];
        for (i64 l = 1; l < L; l++) {
            W.push_back(at), at += H[l] * H[l - 1];
            b.push_back(at), at += H[l];
            s.push_back(at), at += H[l];
        }
        w = at, at += H[L - 1];
        bias = at;
    }
};

}  // namespace
