// DIN's activation unit over (candidate, event) pairs, without the pairs ever standing in memory as inputs.
//
// N candidates · T events · P pairs · K width of an item · H, widths of the hidden layers (all multiples of 16)
//
// The first layer of pair (n, t) is Z = c_n + e_t + A·k_t + B·(q_n * k_t) = c_n + e_t + (A + B·diag(q_n))·k_t, with
// c_n = C·q_n + b; A, B and C are made of the caller's one weight (unit.h). So each candidate gets a matrix M_n = A + B·diag(q_n) of its own, [H, K], and a pair costs H·K multiplications where
// the factored form costs 2·H·K. Backward the same: dM_n = sum_t dZ_t k_t^T gives dA, dB and dq_n at once.
// Everything of one candidate happens while its events lie in the first-level cache; only the pre-activations Z of each
// layer are kept for backward (Z null: not even these). The activation is max(z, 0) + slope * min(z, 0): ReLU where slope is 0.
//
// Candidates with the same history stand together and go to one thread, so that no gradient is written by two; the
// gradients of the weights are summed per thread and then in the order of the threads: the same numbers in every run.

#include <cstring>

#include "unit.h"

namespace {

// out = <w, activation of z> + bias
template <bool bent, class T>
void score(i64 rows, i64 width, const T* z, const T* slope, const T* w, T bias, T* out) {
    for (i64 i = 0; i < rows; i++) {
        V<T> sum = {};
        for (i64 h = 0; h < width; h += LENGTH<T>) {
            const Activation<T, bent> act{load(slope + h)};
            sum += load(w + h) * act(load(z + i * width + h));
        }
        T total = bias;
        for (i64 j = 0; j < LENGTH<T>; j++) total += sum[j];
        out[i] = total;
    }
}

// grad: the gradient of z; what the rows sum to is added to dslope, sum and dw.
template <bool bent, class T>
void score_backward(i64 rows, i64 width, const T* z, const T* slope, const T* w, const T* g, T* dslope, T* sum, T* dw, T* grad) {
    for (i64 h = 0; h < width; h += LENGTH<T>) {
        const Activation<T, bent> act{load(slope + h)};
        const V<T> wh = load(w + h);
        V<T> ds = load(dslope + h), total = load(sum + h), weight = load(dw + h);
        for (i64 i = 0; i < rows; i++) {
            const V<T> zh = load(z + i * width + h);
            V<T> d = g[i] * wh;
            weight += g[i] * act(zh);
            act.back(zh, d, ds);
            total += d;
            store(grad + i * width + h, d);
        }
        store(dslope + h, ds), store(sum + h, total), store(dw + h, weight);
    }
}

// M = A + B·diag(q) [rows, N]; q(row, column) gives a vector
template <class T, class Q>
void candidate_matrix(i64 rows, i64 N, const T* A, const T* B, T* M, Q q) {
    for (i64 i = 0; i < rows; i++)
        for (i64 j = 0; j < N; j += LENGTH<T>) store(M + i * N + j, load(A + i * N + j) + q(i, j) * load(B + i * N + j));
}

template <class T, bool bent>
void forward(i64 N, i64 K, i64 L, const i64* H, const i64* first, const i64* count, const i64* start, const T* q, const T* k,
             const T* e, const Given<const T>& given, T* const* Z, T* out, int threads) {
    const std::vector<T> flat = packed(given, K, L, H);
    const Shared<const T> p(flat.data(), K, L, H);
    // transposed once: a row of B in the products below is then a row of memory
    std::vector<T> At(K * H[0]), Bt(K * H[0]), Ct(K * H[0]);
    transpose(H[0], K, p.A, At.data());
    transpose(H[0], K, p.B, Bt.data());
    transpose(H[0], K, p.C, Ct.data());
    std::vector<std::vector<T>> Wt(1);
    for (i64 l = 1; l < L; l++) {
        Wt.emplace_back(H[l] * H[l - 1]);
        transpose(H[l], H[l - 1], p.W[l], Wt.back().data());
    }
    const i64 most = N ? *std::max_element(count, count + N) : 0, widest = *std::max_element(H, H + L);
#pragma omp parallel num_threads(threads)
    {
        // two of each: a layer is read while the next is written
        std::vector<T> M(K * H[0]), act[2], scratch[2];
        for (int i = 0; i < 2; i++) act[i].resize(bent ? (TOGETHER + most) * widest : 0), scratch[i].resize(Z ? 0 : (TOGETHER + most) * widest);
        const Range mine = share(N, first, count, omp_get_thread_num(), threads);
        const std::vector<T> c = of_candidates(mine, K, H[0], q, Ct.data(), p.b[0]);
        in_blocks(mine, [&](i64 n) { return count[n]; }, [&](i64 low, i64 high, i64 rows) {
            // Z of layer l, and what the next one reads of it, for row r of the block
            auto layer = [&](i64 l, i64 r) { return (Z ? Z[l] + start[low] * H[l] : scratch[l % 2].data()) + r * H[l]; };
            auto active = [&](i64 l, i64 r) { return bent ? act[l % 2].data() + r * H[l] : layer(l, r); };
            // what follows the product of layer l: without a slope, max(z, 0) stands for z
            auto keep = [&](i64 l, i64 r) {
                return [width = H[l], slope = p.s[l], last = l + 1 == L, z = layer(l, r), a = active(l, r)](i64 i, i64 h, auto& sums) INLINED {
                    const Activation<T, bent> of{load(slope + h)};
                    i64 at = i * width + h;
                    for (auto& sum : sums) {
                        store(z + at, bent ? sum : of(sum));
                        if (bent && !last) store(a + at, of(sum));
                        at += width;
                    }
                };
            };
            for (i64 n = low; n < high; n++) {
                if (!count[n]) continue;
                candidate_matrix(K, H[0], At.data(), Bt.data(), M.data(), [qn = q + n * K](i64 i, i64) INLINED { return V<T>{} + qn[i]; });
                const T *cn = c.data() + (n - mine.low) * H[0], *en = e ? e + first[n] * H[0] : nullptr;
                const Left<T> keys{k + first[n] * K, K, 1};
                const auto end = keep(0, start[n] - start[low]);
                multiply(count[n], H[0], K, keys, M.data(), [=, width = H[0]](i64 i, i64 h) INLINED {
                    return en ? load(cn + h) + load(en + i * width + h) : load(cn + h);
                }, end);
            }
            for (i64 l = 1; l < L; l++)
                multiply(rows, H[l], H[l - 1], Left<T>{active(l - 1, 0), H[l - 1], 1}, Wt[l].data(), [b = p.b[l]](i64, i64 h) INLINED { return load(b + h); }, keep(l, 0));
            score<bent>(rows, H[L - 1], layer(L - 1, 0), p.s[L - 1], p.w, *p.bias, out + start[low]);
        });
    }
}

template <class T, bool bent>
void backward(i64 N, i64 K, i64 L, const i64* H, const i64* first, const i64* count, const i64* start, const T* q, const T* k,
              const Given<const T>& given, T* const* Z, const T* grad, T* dq, T* dk, T* de, const Given<T>& gradients, int threads) {
    const std::vector<T> flat = packed(given, K, L, H);
    const Shared<const T> p(flat.data(), K, L, H);
    const i64 size = flat.size();
    const i64 most = N ? *std::max_element(count, count + N) : 0, widest = *std::max_element(H, H + L);
    std::vector<T> sums(size * threads);
#pragma omp parallel num_threads(threads)
    {
        Shared<T> d(sums.data() + size * omp_get_thread_num(), K, L, H);
        const i64 room = (TOGETHER + most) * widest;
        std::vector<T> M(K * H[0]), act(bent ? room : 0), here(room), next(room);  // here: the gradient of a layer's Z
        const Range mine = share(N, first, count, omp_get_thread_num(), threads);
        std::vector<T> dc((mine.high - mine.low) * H[0]);
        in_blocks(mine, [&](i64 n) { return count[n]; }, [&](i64 low, i64 high, i64 rows) {
            const i64 from = start[low], last = H[L - 1];
            const T* g = grad + from;
            for (i64 i = 0; i < rows; i++) *d.bias += g[i];
            // f(row, rows, sum) for layer l: all rows at once, but for the first layer, where each candidate has sums of its own
            auto each = [&](i64 l, auto f) {
                if (l) return f(i64{0}, rows, d.b[l]);
                for (i64 n = low; n < high; n++) f(start[n] - from, count[n], dc.data() + (n - mine.low) * H[0]);
            };
            each(L - 1, [&](i64 row, i64 many, T* sum) {
                score_backward<bent>(many, last, Z[L - 1] + (from + row) * last, p.s[L - 1], p.w, g + row, d.s[L - 1], sum, d.w, here.data() + row * last);
            });
            for (i64 l = L - 1; l > 0; l--) {
                const i64 width = H[l], in = H[l - 1];
                each(l - 1, [&](i64 row, i64 many, T* sum) {
                    multiply(
                        many, in, width, Left<T>{here.data() + row * width, width, 1}, p.W[l],
                        [](i64, i64) INLINED { return V<T>{}; },
                        [=, z = Z[l - 1] + (from + row) * in, slope = p.s[l - 1], dslope = d.s[l - 1], to = next.data() + row * in, a = act.data() + row * in](i64 i, i64 h, auto& sums) INLINED {
                            const Activation<T, bent> of{load(slope + h)};
                            V<T> ds = load(dslope + h), total = load(sum + h);
                            i64 at = i * in + h;
                            for (auto& g : sums) {
                                const V<T> zh = load(z + at);
                                if (bent) store(a + at, of(zh));
                                of.back(zh, g, ds);
                                total += g;
                                store(to + at, g);
                                at += in;
                            }
                            if (bent) store(dslope + h, ds);
                            store(sum + h, total);
                        });
                });
                accumulate(width, in, rows, Left<T>{here.data(), 1, width}, bent ? act.data() : Z[l - 1] + from * in, d.W[l]);
                std::swap(here, next);
            }
            for (i64 n = low; n < high; n++) {
                const i64 t = count[n];
                if (!t) continue;
                const T *dz = here.data() + (start[n] - from) * H[0], *qn = q + n * K, *keys = k + first[n] * K;
                if (de)
                    for (i64 i = 0; i < t * H[0]; i++) de[first[n] * H[0] + i] += dz[i];
                candidate_matrix(H[0], K, p.A, p.B, M.data(), [=](i64, i64 i) INLINED { return load(qn + i); });
                accumulate(t, K, H[0], Left<T>{dz, H[0], 1}, M.data(), dk + first[n] * K);
                matrix_backward(H[0], K, t, Left<T>{dz, 1, H[0]}, keys, p.B, qn, d.A, d.B, dq + n * K);
            }
        });
        candidates_backward(mine, K, H[0], q, p.C, dc.data(), d.C, d.b[0], dq);
    }
    unpack(Shared<T>(summed(sums, size, threads), K, L, H), gradients, K, L, H);
}

// f(low, high): candidates of a range that follow each other and have the same history, so that what they need of its keys is
// one product
template <class F>
void in_runs(Range mine, const i64* first, const i64* count, F f) {
    for (i64 low = mine.low, n = low; n < mine.high; low = n) {
        while (n < mine.high && first[n] == first[low] && count[n] == count[low]) n++;
        f(low, n);
    }
}

// out_n = sum over a candidate's pairs of weight * key
template <class T>
void attend(i64 N, i64 K, const i64* first, const i64* count, const i64* start, const T* w, const T* k, T* out, int threads) {
#pragma omp parallel num_threads(threads)
    in_runs(share(N, first, count, omp_get_thread_num(), threads), first, count, [&](i64 low, i64 high) {
        const i64 t = count[low];
        std::fill(out + low * K, out + high * K, T{});
        accumulate(high - low, K, t, Left<T>{w + start[low], t, 1}, k + first[low] * K, out + low * K);
    });
}

template <class T>
void attend_backward(i64 N, i64 K, const i64* first, const i64* count, const i64* start, const T* w, const T* k, const T* grad,
                     T* dw, T* dk, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<T> turned, products;
        in_runs(share(N, first, count, omp_get_thread_num(), threads), first, count, [&](i64 low, i64 high) {
            const i64 t = count[low], many = high - low, width = (many + 15) / 16 * 16;
            const T *keys = k + first[low] * K, *g = grad + low * K;
            accumulate(t, K, many, Left<T>{w + start[low], 1, t}, g, dk + first[low] * K);
            if (many == 1) {
                for (i64 i = 0; i < t; i++) {
                    V<T> sum = {};
                    for (i64 h = 0; h < K; h += LENGTH<T>) sum += load(g + h) * load(keys + i * K + h);
                    T total = 0;
                    for (i64 j = 0; j < LENGTH<T>; j++) total += sum[j];
                    dw[start[low] + i] = total;
                }
                return;
            }
            turned.assign(K * width, 0), products.assign(t * width, 0);
            for (i64 n = 0; n < many; n++)
                for (i64 h = 0; h < K; h++) turned[h * width + n] = g[n * K + h];
            accumulate(t, width, K, Left<T>{keys, K, 1}, turned.data(), products.data());
            for (i64 n = 0; n < many; n++)
                for (i64 i = 0; i < t; i++) dw[start[low] + n * t + i] = products[i * width + n];
        });
    }
}

}  // namespace

#define EXPORT(T, name)                                                                                                    \
    extern "C" void unit_forward_##name(i64 N, i64 K, i64 L, const i64* H, i64 bent, const i64* first, const i64* count,   \
                                        const i64* start, const T* q, const T* k, const T* e, const i64* layout,           \
                                        const T* const* W, const T* const* b, const T* const* s, const T* w,               \
                                        const T* bias, T* const* Z, T* out, int threads) {                                 \
        (bent || sizeof(T) == 8 ? forward<T, true> : forward<T, sizeof(T) == 8>)(                                          \
            N, K, L, H, first, count, start, q, k, e, {layout, W, b, s, w, bias}, Z, out, threads);                        \
    }                                                                                                                      \
    extern "C" void unit_backward_##name(i64 N, i64 K, i64 L, const i64* H, i64 bent, const i64* first, const i64* count,  \
                                         const i64* start, const T* q, const T* k, const i64* layout, const T* const* W,   \
                                         const T* const* b, const T* const* s, const T* w, const T* bias, T* const* Z,     \
                                         const T* grad, T* dq, T* dk, T* de, T* const* dW, T* const* db, T* const* ds,     \
                                         T* dw, T* dbias, int threads) {                                                   \
        (bent || sizeof(T) == 8 ? backward<T, true> : backward<T, sizeof(T) == 8>)(                                        \
            N, K, L, H, first, count, start, q, k, {layout, W, b, s, w, bias}, Z, grad, dq, dk, de,                        \
            {layout, dW, db, ds, dw, dbias}, threads);                                                                     \
    }                                                                                                                      \
    extern "C" void attend_forward_##name(i64 N, i64 K, const i64* first, const i64* count, const i64* start, const T* w,  \
                                          const T* k, T* out, int threads) {                                               \
        attend<T>(N, K, first, count, start, w, k, out, threads);                                                          \
    }                                                                                                                      \
    extern "C" void attend_backward_##name(i64 N, i64 K, const i64* first, const i64* count, const i64* start, const T* w, \
                                           const T* k, const T* grad, T* dw, T* dk, int threads) {                         \
        attend_backward<T>(N, K, first, count, start, w, k, grad, dw, dk, threads);                                        \
    }
EXPORT(float, f32)
EXPORT(double, f64)
