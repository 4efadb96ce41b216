// What the activation unit's loops share, in float and in bf16: see unit.cpp for the letters.

#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
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

// Parameters as the caller has them, or where their gradients go; by layer. layout: where the blocks query, key, difference,
// product and inner begin in a row of the first weight (-1: nowhere), how long that row is, the width of an item, and those
// of the layers.
template <class T>
struct Given {
    const i64* layout;
    T* const* W;
    T* const* b;
    T* const* s;
    T *w, *bias;
};

// What all candidates share, or its gradients: widths filled with zeros, the first weight as what it is of k (A), of q * k (B)
// and of q (C), [H, K] each.
template <class T>
struct Shared {
    T *A, *B, *C;
    std::vector<T*> W{nullptr}, b, s;  // by layer
    T *w, *bias;

    Shared(T* at, i64 K, i64 L, const i64* H) {
        for (T** first : {&A, &B, &C}) *first = at, at += H[0] * K;
        for (i64 l = 0; l < L; l++) {
            if (l) W.push_back(at), at += H[l] * H[l - 1];
            b.push_back(at), at += H[l];
            s.push_back(at), at += H[l];
        }
        w = at, at += H[L - 1];
        bias = at;
    }
    static i64 size(i64 K, i64 L, const i64* H) {
        i64 all = 3 * H[0] * K + H[L - 1] + 1;
        for (i64 l = 0; l < L; l++) all += 2 * H[l] + (l ? H[l] * H[l - 1] : 0);
        return all;
    }
};

// f(given, shared) for every number that stands in both, but for the first weight's
template <class A, class B, class F>
void beside(const Given<A>& given, const Shared<B>& shared, i64 L, const i64* H, F f) {
    const i64* h = given.layout + 7;
    for (i64 l = 0; l < L; l++)
        for (i64 r = 0; r < h[l]; r++) {
            f(given.b[l][r], shared.b[l][r]), f(given.s[l][r], shared.s[l][r]);
            for (i64 i = 0; l && i < h[l - 1]; i++) f(given.W[l][r * h[l - 1] + i], shared.W[l][r * H[l - 1] + i]);
        }
    for (i64 i = 0; i < h[L - 1]; i++) f(given.w[i], shared.w[i]);
    f(*given.bias, *shared.bias);
}

template <class T>
std::vector<T> packed(const Given<const T>& given, i64 K, i64 L, const i64* H) {
    std::vector<T> out(Shared<T>::size(K, L, H));
    const Shared<T> to(out.data(), K, L, H);
    const i64 *at = given.layout, inputs = at[5], width = at[6];
    const std::vector<T> none(width);
    for (i64 r = 0; r < at[7]; r++) {
        auto of = [&](int block) { return at[block] < 0 ? none.data() : given.W[0] + r * inputs + at[block]; };
        const T *query = of(0), *key = of(1), *difference = of(2), *product = of(3), inner = *of(4);
        for (i64 i = 0; i < width; i++) {
            to.A[r * K + i] = key[i] - difference[i];
            to.B[r * K + i] = product[i] + inner;
            to.C[r * K + i] = query[i] + difference[i];
        }
    }
    beside(given, to, L, H, [](const T& from, T& to) { to = from; });
    return out;
}

template <class T>
void unpack(const Shared<T>& from, const Given<T>& given, i64 K, i64 L, const i64* H) {
    const i64 *at = given.layout, inputs = at[5], width = at[6];
    std::fill(given.W[0], given.W[0] + at[7] * inputs, T{});
    for (i64 r = 0; r < at[7]; r++) {
        const T *a = from.A + r * K, *b = from.B + r * K, *c = from.C + r * K;
        auto set = [&](int block, i64 many, auto value) {
            for (i64 i = 0; at[block] >= 0 && i < many; i++) given.W[0][r * inputs + at[block] + i] = value(i);
        };
        set(0, width, [=](i64 i) { return c[i]; });
        set(1, width, [=](i64 i) { return a[i]; });
        set(2, width, [=](i64 i) { return c[i] - a[i]; });
        set(3, width, [=](i64 i) { return b[i]; });
        set(4, 1, [=](i64) { return std::accumulate(b, b + width, T{}); });
    }
    beside(given, from, L, H, [](T& to, const T& from) { to = from; });
}

// c_n = C·q_n + b of a thread's candidates, [their count, H]. Ct: C transposed
template <class T>
std::vector<T> of_candidates(Range mine, i64 K, i64 H, const T* q, const T* Ct, const T* b) {
    std::vector<T> c((mine.high - mine.low) * H);
    multiply(
        mine.high - mine.low, H, K, Left<T>{q + mine.low * K, K, 1}, Ct, [=](i64, i64 h) INLINED { return load(b + h); },
        [=, to = c.data()](i64 r, i64 h, auto& sums) INLINED {
            i64 at = r * H + h;
            for (auto& sum : sums) store(to + at, sum), at += H;
        });
    return c;
}

// The way back from dc: what it adds to the gradients of C, b and q.
template <class T>
void candidates_backward(Range mine, i64 K, i64 H, const T* q, const T* C, const T* dc, T* dC, T* db, T* dq) {
    const i64 many = mine.high - mine.low;
    accumulate(H, K, many, Left<T>{dc, 1, H}, q + mine.low * K, dC);
    accumulate(many, K, H, Left<T>{dc, H, 1}, C, dq + mine.low * K);
    for (i64 n = 0; n < many; n++)
        for (i64 h = 0; h < H; h++) db[h] += dc[n * H + h];
}

// The sum of the threads' gradients, in their order, into the first's.
template <class T>
T* summed(std::vector<T>& of_threads, i64 size, int threads) {
    for (int thread = 1; thread < threads; thread++)
        for (i64 i = 0; i < size; i++) of_threads[i] += of_threads[size * thread + i];
    return of_threads.data();
}

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
