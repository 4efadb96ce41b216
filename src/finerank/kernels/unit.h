// What the activation unit's loops share, in float and in bf16: see unit.cpp for the letters.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "activation.h"

namespace {

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

constexpr i64 TOGETHER = 64;  // rows that go through the later layers at once, at least

// f(low, high, rows) for runs of candidates of one thread that go together; of(n): the rows of candidate n
template <class Of, class F>
void in_blocks(Range mine, Of of, F f) {
    for (i64 n = mine.low; n < mine.high;) {
        const i64 low = n;
        i64 rows = 0;
        while (n < mine.high && rows < TOGETHER) rows += of(n++);
        if (rows) f(low, n, rows);
    }
}

// What all candidates share, or its gradients; laid out as the caller's flat buffer. s: slopes after each layer.
template <class T>
struct Shared {
    T *A, *B;
    std::vector<T*> W{nullptr}, b{nullptr}, s;  // by layer; the first has A, B and what the caller computes itself
    T *w, *bias;

    Shared(T* at, i64 K, i64 L, const i64* H) {
        A = at, at += H[0] * K;
        B = at, at += H[0] * K;
        s.push_back(at), at += H[0];
        for (i64 l = 1; l < L; l++) {
            W.push_back(at), at += H[l] * H[l - 1];
            b.push_back(at), at += H[l];
            s.push_back(at), at += H[l];
        }
        w = at, at += H[L - 1];
        bias = at;
    }
};

// dM += as a product of dz [t, H] and keys, without ever standing in memory: M = A + B·diag(q), so each of its vectors goes into
// the gradients of A, B (added to) and q (set).
template <class E, class T>
void matrix_backward(i64 H, i64 K, i64 terms, Left<E> dz, const E* keys, const T* B, const T* q, T* dA, T* dB, T* dq) {
    std::fill(dq, dq + K, T{});
    multiply(
        H, K, terms, dz, keys, [](i64, i64) INLINED { return typename Terms<E>::Sum{}; },
        [=](i64 h, i64 i, auto& sums) INLINED {
            const V<T> qi = load(q + i);
            V<T> total = load(dq + i);
            i64 at = h * K + i;
            for (auto& sum : sums) {
                const V<T> m = (V<T>)sum;
                store(dA + at, load(dA + at) + m);
                store(dB + at, load(dB + at) + m * qi);
                total += m * load(B + at);
                at += K;
            }
            store(dq + i, total);
        });
}

}  // namespace
