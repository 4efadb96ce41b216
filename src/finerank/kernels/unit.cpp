// DIN's activation unit over (candidate, event) pairs, without the pairs ever standing in memory as inputs.
//
// N candidates · T events · P pairs · K width of an item · H, widths of the hidden layers (all multiples of 16)
//
// The first layer of pair (n, t) is Z = c_n + e_t + A·k_t + B·(q_n * k_t) = c_n + e_t + (A + B·diag(q_n))·k_t.
// So each candidate gets a matrix M_n = A + B·diag(q_n) of its own, [H, K], and a pair costs H·K multiplications where
// the factored form costs 2·H·K. Backward the same: dM_n = sum_t dZ_t k_t^T gives dA, dB and dq_n at once.
// Everything of one candidate happens while its events lie in the first-level cache; only the pre-activations Z of each
// layer are kept for backward (Z null: not even these). The activation is max(z, 0) + slope * min(z, 0): ReLU where slope is 0.
//
// Candidates with the same history stand together and go to one thread, so that no gradient is written by two; the
// gradients of the weights are summed per thread and then in the order of the threads: the same numbers in every run.

#include <algorithm>
#include <cstring>

#include "unit.h"

namespace {

// What reads Z for the first time goes through it in order, so that the processor fetches ahead; the other loops go down
// the columns, a vector of them at a time, and what they sum over the pairs stays in a register.
// out = the activation of z, [t, width]
template <class T>
void activate(i64 t, i64 width, const T* z, const T* slope, T* out) {
    for (i64 i = 0; i < t; i++)
        for (i64 h = 0; h < width; h += LENGTH<T>) store(out + i * width + h, active<T>(load(z + i * width + h), load(slope + h)));
}

// From the gradient of a layer's activation to that of z, in place; its sum over the pairs is added to `sum`.
template <class T>
void through(i64 t, i64 width, const T* z, const T* slope, T* grad, T* dslope, T* sum) {
    for (i64 h = 0; h < width; h += LENGTH<T>) {
        const V<T> s = load(slope + h), none = {};
        V<T> ds = load(dslope + h), total = load(sum + h);
        for (i64 i = 0; i < t; i++) {
            const V<T> zh = load(z + i * width + h), g = load(grad + i * width + h);
            const V<T> out = zh > 0 ? g : g * s;
            ds += zh > 0 ? none : g * zh;
            total += out;
            store(grad + i * width + h, out);
        }
        store(dslope + h, ds);
        store(sum + h, total);
    }
}

// The last layer, out = <w, activation of z> + bias.
template <class T>
void score(i64 t, i64 width, const T* z, const T* slope, const T* w, T bias, T* out) {
    for (i64 i = 0; i < t; i++) {
        V<T> sum = {};
        for (i64 h = 0; h < width; h += LENGTH<T>) sum += load(w + h) * active<T>(load(z + i * width + h), load(slope + h));
        T total = bias;
        for (i64 j = 0; j < LENGTH<T>; j++) total += sum[j];
        out[i] = total;
    }
}

template <class T>
void score_backward(i64 t, i64 width, const T* z, const T* slope, const T* w, const T* g, T* dw, T* dbias, T* grad) {
    for (i64 i = 0; i < t; i++) {
        for (i64 h = 0; h < width; h += LENGTH<T>) {
            store(dw + h, load(dw + h) + g[i] * active<T>(load(z + i * width + h), load(slope + h)));
            store(grad + i * width + h, g[i] * load(w + h));
        }
        *dbias += g[i];
    }
}

// M = A + B·diag(q): [rows, K] each
template <class T>
void scaled(i64 rows, i64 K, const T* A, const T* B, const T* q, T* M) {
    for (i64 i = 0; i < K; i += LENGTH<T>) {
        const V<T> qi = load(q + i);
        for (i64 h = 0; h < rows; h++) store(M + h * K + i, load(A + h * K + i) + load(B + h * K + i) * qi);
    }
}

template <class T>
void forward(i64 N, i64 K, i64 L, const i64* H, const i64* first, const i64* count, const i64* start, const T* q, const T* k,
             const T* e, const T* c, const T* flat, T* const* Z, T* out, int threads) {
    const Shared<const T> p(flat, K, L, H);
    // transposed once: a row of B in the products below is then a row of memory
    std::vector<T> At(K * H[0]), Bt(K * H[0]);
    transpose(H[0], K, p.A, At.data());
    transpose(H[0], K, p.B, Bt.data());
    std::vector<std::vector<T>> Wt;
    for (i64 l = 1; l < L; l++) {
        Wt.emplace_back(H[l] * H[l - 1]);
        transpose(H[l], H[l - 1], p.W[l - 1], Wt.back().data());
    }
    const i64 most = N ? *std::max_element(count, count + N) : 0, widest = *std::max_element(H, H + L);
#pragma omp parallel num_threads(threads)
    {
        std::vector<T> M(K * H[0]), act(most * widest), scratch(Z ? 0 : most * widest);
        auto layer = [&](i64 l, i64 n) { return Z ? Z[l] + start[n] * H[l] : scratch.data(); };
        const Range mine = share(N, first, count, omp_get_thread_num(), threads);
        for (i64 n = mine.low; n < mine.high; n++) {
            const i64 t = count[n];
            if (!t) continue;
            for (i64 i = 0; i < K; i++) {
                const T qi = q[n * K + i];
#pragma omp simd
                for (i64 h = 0; h < H[0]; h++) M[i * H[0] + h] = At[i * H[0] + h] + qi * Bt[i * H[0] + h];
            }
            T* z = layer(0, n);
            for (i64 i = 0; i < t; i++) {
                std::memcpy(z + i * H[0], c + n * H[0], H[0] * sizeof(T));
                if (e)
#pragma omp simd
                    for (i64 h = 0; h < H[0]; h++) z[i * H[0] + h] += e[(first[n] + i) * H[0] + h];
            }
            multiply<T, true>(t, H[0], K, k + first[n] * K, K, 1, M.data(), z);
            const T* slope = p.slope;
            for (i64 l = 1; l < L; l++) {
                const i64 in = H[l - 1], width = H[l];
                activate(t, in, z, slope, act.data());
                z = layer(l, n);
                for (i64 i = 0; i < t; i++) std::memcpy(z + i * width, p.b[l - 1], width * sizeof(T));
                multiply<T, true>(t, width, in, act.data(), in, 1, Wt[l - 1].data(), z);
                slope = p.s[l - 1];
            }
            score(t, H[L - 1], z, slope, p.w, *p.bias, out + start[n]);
        }
    }
}

template <class T>
void backward(i64 N, i64 K, i64 L, const i64* H, const i64* first, const i64* count, const i64* start, const T* q, const T* k,
              const T* flat, T* const* Z, const T* grad, T* dq, T* dk, T* de, T* dc, T* dflat, i64 size, int threads) {
    const Shared<const T> p(flat, K, L, H);
    const i64 most = N ? *std::max_element(count, count + N) : 0, widest = *std::max_element(H, H + L);
    std::vector<T> sums(size * threads);
#pragma omp parallel num_threads(threads)
    {
        Shared<T> d(sums.data() + size * omp_get_thread_num(), K, L, H);
        std::vector<T> M(K * H[0]), dM(K * H[0]), act(most * widest), here(most * widest), below(most * widest);
        const Range mine = share(N, first, count, omp_get_thread_num(), threads);
        for (i64 n = mine.low; n < mine.high; n++) {
            const i64 t = count[n];
            if (!t) continue;
            const T* g = grad + start[n];
            const i64 last = H[L - 1];
            const T* z = Z[L - 1] + start[n] * last;
            const T* slope = L > 1 ? p.s[L - 2] : p.slope;
            T* dslope = L > 1 ? d.s[L - 2] : d.slope;
            // here: the gradient of a layer's activation, then of its pre-activation
            score_backward(t, last, z, slope, p.w, g, d.w, d.bias, here.data());
            for (i64 l = L - 1; l > 0; l--) {
                const i64 width = H[l], in = H[l - 1];
                through(t, width, z, slope, here.data(), dslope, d.b[l - 1]);
                z = Z[l - 1] + start[n] * in;
                slope = l > 1 ? p.s[l - 2] : p.slope;
                dslope = l > 1 ? d.s[l - 2] : d.slope;
                activate(t, in, z, slope, act.data());
                multiply<T, true>(width, in, t, here.data(), 1, width, act.data(), d.W[l - 1]);
                multiply<T, false>(t, in, width, here.data(), width, 1, p.W[l - 1], below.data());
                std::swap(here, below);
            }
            through(t, H[0], z, slope, here.data(), dslope, dc + n * H[0]);
            if (de)
                for (i64 i = 0; i < t * H[0]; i++) de[first[n] * H[0] + i] += here[i];
            const T* qn = q + n * K;
            scaled(H[0], K, p.A, p.B, qn, M.data());
            multiply<T, true>(t, K, H[0], here.data(), H[0], 1, M.data(), dk + first[n] * K);
            multiply<T, false>(H[0], K, t, here.data(), 1, H[0], k + first[n] * K, dM.data());
            scaled_backward(H[0], K, p.B, qn, dM.data(), d.A, d.B, dq + n * K);
        }
    }
    for (i64 i = 0; i < size; i++) dflat[i] = 0;
    for (int thread = 0; thread < threads; thread++)
        for (i64 i = 0; i < size; i++) dflat[i] += sums[size * thread + i];
}

// out_n = sum over a candidate's pairs of weight * key
template <class T>
void attend(i64 N, i64 K, const i64* first, const i64* count, const i64* start, const T* w, const T* k, T* out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 n = 0; n < N; n++) {
        T* to = out + n * K;
        for (i64 i = 0; i < K; i++) to[i] = 0;
        for (i64 t = 0; t < count[n]; t++)
#pragma omp simd
            for (i64 i = 0; i < K; i++) to[i] += w[start[n] + t] * k[(first[n] + t) * K + i];
    }
}

template <class T>
void attend_backward(i64 N, i64 K, const i64* first, const i64* count, const i64* start, const T* w, const T* k, const T* grad,
                     T* dw, T* dk, int threads) {
#pragma omp parallel num_threads(threads)
    {
        const Range mine = share(N, first, count, omp_get_thread_num(), threads);
        for (i64 n = mine.low; n < mine.high; n++)
            for (i64 t = 0; t < count[n]; t++) {
                const T* at = k + (first[n] + t) * K;
                T* to = dk + (first[n] + t) * K;
                const T* g = grad + n * K;
                const T weight = w[start[n] + t];
                T sum = 0;
#pragma omp simd reduction(+ : sum)
                for (i64 i = 0; i < K; i++) sum += g[i] * at[i], to[i] += weight * g[i];
                dw[start[n] + t] = sum;
            }
    }
}

}  // namespace

#define EXPORT(T, name)                                                                                                    \
    extern "C" void unit_forward_##name(i64 N, i64 K, i64 L, const i64* H, const i64* first, const i64* count,             \
                                        const i64* start, const T* q, const T* k, const T* e, const T* c, const T* flat,   \
                                        T* const* Z, T* out, int threads) {                                                \
        forward<T>(N, K, L, H, first, count, start, q, k, e, c, flat, Z, out, threads);                                    \
    }                                                                                                                      \
    extern "C" void unit_backward_##name(i64 N, i64 K, i64 L, const i64* H, const i64* first, const i64* count,            \
                                         const i64* start, const T* q, const T* k, const T* flat, T* const* Z,             \
                                         const T* grad, T* dq, T* dk, T* de, T* dc, T* dflat, i64 size, int threads) {     \
        backward<T>(N, K, L, H, first, count, start, q, k, flat, Z, grad, dq, dk, de, dc, dflat, size, threads);           \
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
