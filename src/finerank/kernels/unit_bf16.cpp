// DIN's activation unit with its products in bf16, summed in float: unit.cpp says what is computed and how.
//
// Differences: only a rounded copy of Z is kept; several candidates go through the later layers together; every candidate
// has an even number of rows in what is kept (`room`: where they begin), the last one zero where it has an odd number of
// pairs, since products over pairs take two at a time. Gradients are summed, and handed over, in float.

#include <algorithm>
#include <cstring>

#include "bf16.h"
#include "unit.h"

#ifdef __AVX512BF16__

namespace {

constexpr i64 TOGETHER = 64;  // rows that go through the later layers at once, at least

inline i64 even(i64 t) { return t + (t & 1); }

// f(low, high, rows) for runs of candidates of one thread that go together
template <class F>
void in_blocks(Range mine, const i64* count, F f) {
    for (i64 n = mine.low; n < mine.high;) {
        const i64 low = n;
        i64 rows = 0;
        while (n < mine.high && rows < TOGETHER) rows += even(count[n++]);
        if (rows) f(low, n, rows);
    }
}

// The twos of neighbouring rows of a matrix [rows, N] of floats; an odd row out is woven with zeros.
void weave_rows(i64 rows, i64 N, const float* from, two* to) {
    for (i64 i = 0; i < rows; i += 2)
        for (i64 j = 0; j < N; j += 16) {
            const __m256i odd = i + 1 < rows ? rounded(_mm512_loadu_ps(from + (i + 1) * N + j)) : _mm256_setzero_si256();
            weave(to + i / 2 * N + j, rounded(_mm512_loadu_ps(from + i * N + j)), odd);
        }
}

void round_all(i64 size, const float* from, half* to) {
    for (i64 i = 0; i < size; i += 16) put(to + i, rounded(_mm512_loadu_ps(from + i)));
}

// Z rounded, and its activation rounded.
void activate(i64 rows, i64 width, const float* z, const float* slope, half* kept, half* out) {
    for (i64 i = 0; i < rows * width; i += width)
        for (i64 h = 0; h < width; h += 16) {
            put(kept + i + h, rounded(_mm512_loadu_ps(z + i + h)));
            put(out + i + h, rounded(active<float>(expand(kept + i + h), load(slope + h))));
        }
}

void score(i64 t, i64 width, const half* z, const float* slope, const float* w, float bias, float* out) {
    for (i64 i = 0; i < t; i++) {
        __m512 sum = _mm512_setzero_ps();
        for (i64 h = 0; h < width; h += 16) sum += load(w + h) * active<float>(expand(z + i * width + h), load(slope + h));
        out[i] = _mm512_reduce_add_ps(sum) + bias;
    }
}

// The gradient of the last layer's weights is added to dw.
void last_weights(i64 rows, i64 width, const half* z, const float* slope, const float* g, float* dw) {
    for (i64 h = 0; h < width; h += 16) {
        const V<float> s = load(slope + h);
        V<float> sum = load(dw + h);
        for (i64 i = 0; i < rows; i++) sum += g[i] * active<float>(expand(z + i * width + h), s);
        store(dw + h, sum);
    }
}

// What a pass back through an activation gives, for an even number of rows: the gradient of Z by rows and woven, and the
// activation woven (null: not wanted).
struct Back {
    half* grad;
    two *woven, *active;
};

// `of(i, h)`: the gradient of the activation of row i, vector h. Sums over the rows are added to dslope and sum.
template <class G>
inline __attribute__((always_inline)) void through(i64 rows, i64 width, const half* z, const float* slope, float* dslope,
                                                   float* sum, Back to, G of) {
    for (i64 h = 0; h < width; h += 16) {
        const __m512 s = load(slope + h), none = _mm512_setzero_ps();
        __m512 ds = load(dslope + h), total = load(sum + h);
        for (i64 i = 0; i < rows; i += 2) {
            const __m512 z0 = expand(z + i * width + h), z1 = expand(z + (i + 1) * width + h);
            const __m512 a0 = active<float>(z0, s), a1 = active<float>(z1, s);
            const __m512 g0 = of(i, h), g1 = of(i + 1, h);
            const __m512 d0 = z0 > 0 ? g0 : g0 * s, d1 = z1 > 0 ? g1 : g1 * s;
            ds += (z0 > 0 ? none : g0 * z0) + (z1 > 0 ? none : g1 * z1);
            total += d0 + d1;
            const __m256i r0 = rounded(d0), r1 = rounded(d1);
            put(to.grad + i * width + h, r0);
            put(to.grad + (i + 1) * width + h, r1);
            weave(to.woven + i / 2 * width + h, r0, r1);
            if (to.active) weave(to.active + i / 2 * width + h, rounded(a0), rounded(a1));
        }
        store<float>(dslope + h, ds);
        store<float>(sum + h, total);
    }
}

// The keys of one candidate as they were last asked for: candidates of one request share them.
struct Keys {
    const float* k;
    const i64 *first, *count;
    i64 K;
    i64 from = -1, many = -1;

    bool changed(i64 n) {
        if (first[n] == from && count[n] == many) return false;
        from = first[n], many = count[n];
        return true;
    }
    const float* at(i64 n) const { return k + first[n] * K; }
};

void forward(i64 N, i64 K, i64 L, const i64* H, const i64* first, const i64* count, const i64* start, const i64* room,
             const float* q, const float* k, const float* e, const float* c, const float* flat, half* const* Z, float* out,
             int threads) {
    const Shared<const float> p(flat, K, L, H);
    std::vector<float> At(K * H[0]), Bt(K * H[0]);
    transpose(H[0], K, p.A, At.data());
    transpose(H[0], K, p.B, Bt.data());
    std::vector<std::vector<two>> W;
    for (i64 l = 1; l < L; l++) {
        std::vector<float> turned(H[l] * H[l - 1]);
        transpose(H[l], H[l - 1], p.W[l - 1], turned.data());
        W.emplace_back(turned.size() / 2);
        weave_rows(H[l - 1], H[l], turned.data(), W.back().data());
    }
    const i64 most = N ? even(*std::max_element(count, count + N)) : 0, widest = *std::max_element(H, H + L);
#pragma omp parallel num_threads(threads)
    {
        const i64 room_for = (TOGETHER + most) * widest;
        std::vector<float> z(room_for);
        std::vector<half> act(room_for), scratch(Z ? 0 : room_for), keys(most * K);
        std::vector<two> M(K / 2 * H[0]);
        Keys held{k, first, count, K};
        const Range mine = share(N, first, count, omp_get_thread_num(), threads);
        in_blocks(mine, count, [&](i64 low, i64 high, i64 rows) {
            float* to = z.data();
            for (i64 n = low; n < high; n++) {
                const i64 t = count[n];
                if (!t) continue;
                if (held.changed(n)) round_all(t * K, held.at(n), keys.data());
                for (i64 i = 0; i < K; i += 2) {
                    const V<float> q0 = V<float>{} + q[n * K + i], q1 = V<float>{} + q[n * K + i + 1];
                    const float *a = At.data() + i * H[0], *b = Bt.data() + i * H[0];
                    for (i64 h = 0; h < H[0]; h += 16)
                        weave(M.data() + i / 2 * H[0] + h, rounded(load(a + h) + q0 * load(b + h)),
                              rounded(load(a + H[0] + h) + q1 * load(b + H[0] + h)));
                }
                for (i64 i = 0; i < t; i++)
                    for (i64 h = 0; h < H[0]; h += 16) {
                        const V<float> of = load(c + n * H[0] + h);
                        store(to + i * H[0] + h, e ? of + load(e + (first[n] + i) * H[0] + h) : of);
                    }
                multiply<true>(t, H[0], K / 2, reinterpret_cast<two*>(keys.data()), K / 2, 1, M.data(), to);
                if (t & 1) std::memset(to + t * H[0], 0, H[0] * sizeof(float));
                to += even(t) * H[0];
            }
            const float* slope = p.slope;
            half* kept = nullptr;
            for (i64 l = 0; l < L; l++) {
                kept = Z ? Z[l] + room[low] * H[l] : scratch.data();
                if (l + 1 == L) break;
                activate(rows, H[l], z.data(), slope, kept, act.data());
                const i64 width = H[l + 1];
                for (i64 i = 0; i < rows; i++) std::memcpy(z.data() + i * width, p.b[l], width * sizeof(float));
                multiply<true>(rows, width, H[l] / 2, reinterpret_cast<two*>(act.data()), H[l] / 2, 1, W[l].data(), z.data());
                slope = p.s[l];
            }
            round_all(rows * H[L - 1], z.data(), kept);
            for (i64 n = low; n < high; n++) {
                score(count[n], H[L - 1], kept, slope, p.w, *p.bias, out + start[n]);
                kept += even(count[n]) * H[L - 1];
            }
        });
    }
}

void backward(i64 N, i64 K, i64 L, const i64* H, const i64* first, const i64* count, const i64* start, const i64* room,
              const float* q, const float* k, const float* flat, half* const* Z, const float* grad, float* dq, float* dk,
              float* de, float* dc, float* dflat, i64 size, int threads) {
    const Shared<const float> p(flat, K, L, H);
    std::vector<std::vector<two>> W;
    for (i64 l = 1; l < L; l++) {
        W.emplace_back(H[l] * H[l - 1] / 2);
        weave_rows(H[l], H[l - 1], p.W[l - 1], W.back().data());
    }
    const i64 most = N ? even(*std::max_element(count, count + N)) : 0, widest = *std::max_element(H, H + L);
    std::vector<float> sums(size * threads);
#pragma omp parallel num_threads(threads)
    {
        Shared<float> d(sums.data() + size * omp_get_thread_num(), K, L, H);
        const i64 room_for = (TOGETHER + most) * widest;
        std::vector<float> below(room_for), dM(K * H[0]), g(TOGETHER + most);
        std::vector<half> here(room_for), next(room_for);
        std::vector<two> woven(room_for / 2), next_woven(room_for / 2), act(room_for / 2), M(K * H[0] / 2), keys(most * K / 2);
        Keys held{k, first, count, K};
        const Range mine = share(N, first, count, omp_get_thread_num(), threads);
        in_blocks(mine, count, [&](i64 low, i64 high, i64 rows) {
            for (i64 n = low, at = 0; n < high; at += even(count[n++])) {
                std::memcpy(g.data() + at, grad + start[n], count[n] * sizeof(float));
                if (count[n] & 1) g[at + count[n]] = 0;
            }
            for (i64 i = 0; i < rows; i++) *d.bias += g[i];
            // layer l, all rows at once, but for the first layer: there each candidate has sums of its own
            auto each = [&](i64 l, auto f) {
                const half* z = Z[l] + room[low] * H[l];
                const float* slope = l ? p.s[l - 1] : p.slope;
                float* dslope = l ? d.s[l - 1] : d.slope;
                if (l) {
                    f(i64{0}, rows, z, slope, dslope, d.b[l - 1]);
                    return;
                }
                for (i64 n = low, at = 0; n < high; at += even(count[n++]))
                    f(at, even(count[n]), z + at * H[0], slope, dslope, dc + n * H[0]);
            };
            const i64 last = H[L - 1];
            each(L - 1, [&](i64 at, i64 many, const half* z, const float* slope, float* dslope, float* sum) {
                const Back to{here.data() + at * last, woven.data() + at / 2 * last, nullptr};
                last_weights(many, last, z, slope, g.data() + at, d.w);
                through(many, last, z, slope, dslope, sum, to,
                        [&](i64 i, i64 h) { return _mm512_set1_ps(g[at + i]) * load(p.w + h); });
            });
            for (i64 l = L - 1; l > 0; l--) {
                const i64 width = H[l], in = H[l - 1];
                multiply<false>(rows, in, width / 2, reinterpret_cast<two*>(here.data()), width / 2, 1, W[l - 1].data(),
                                below.data());
                each(l - 1, [&](i64 at, i64 many, const half* z, const float* slope, float* dslope, float* sum) {
                    const Back to{next.data() + at * in, next_woven.data() + at / 2 * in, act.data() + at / 2 * in};
                    const float* from = below.data() + at * in;
                    through(many, in, z, slope, dslope, sum, to, [&](i64 i, i64 h) { return load(from + i * in + h); });
                });
                multiply<true>(width, in, rows / 2, woven.data(), 1, width, act.data(), d.W[l - 1]);
                std::swap(here, next);
                std::swap(woven, next_woven);
            }
            for (i64 n = low, at = 0; n < high; at += even(count[n++])) {
                const i64 t = count[n];
                if (!t) continue;
                const half* dz = here.data() + at * H[0];
                if (de)
                    for (i64 i = 0; i < t * H[0]; i += 16) {
                        float* to = de + first[n] * H[0] + i;
                        store(to, load(to) + expand(dz + i));
                    }
                const float* qn = q + n * K;
                for (i64 i = 0; i < K; i += 16) {
                    const V<float> qi = load(qn + i);
                    for (i64 h = 0; h < H[0]; h += 2) {
                        const float *a = p.A + h * K + i, *b = p.B + h * K + i;
                        weave(M.data() + h / 2 * K + i, rounded(load(a) + qi * load(b)), rounded(load(a + K) + qi * load(b + K)));
                    }
                }
                multiply<true>(t, K, H[0] / 2, reinterpret_cast<const two*>(dz), H[0] / 2, 1, M.data(), dk + first[n] * K);
                if (held.changed(n)) weave_rows(t, K, held.at(n), keys.data());
                multiply<false>(H[0], K, even(t) / 2, woven.data() + at / 2 * H[0], 1, H[0], keys.data(), dM.data());
                scaled_backward<float>(H[0], K, p.B, qn, dM.data(), d.A, d.B, dq + n * K);
            }
        });
    }
    for (i64 i = 0; i < size; i++) dflat[i] = 0;
    for (int thread = 0; thread < threads; thread++)
        for (i64 i = 0; i < size; i++) dflat[i] += sums[size * thread + i];
}

}  // namespace

extern "C" i64 unit_has_bf16(int) { return 1; }
extern "C" void unit_forward_bf16(i64 N, i64 K, i64 L, const i64* H, const i64* first, const i64* count, const i64* start,
                                  const i64* room, const float* q, const float* k, const float* e, const float* c,
                                  const float* flat, half* const* Z, float* out, int threads) {
    forward(N, K, L, H, first, count, start, room, q, k, e, c, flat, Z, out, threads);
}
extern "C" void unit_backward_bf16(i64 N, i64 K, i64 L, const i64* H, const i64* first, const i64* count, const i64* start,
                                   const i64* room, const float* q, const float* k, const float* flat, half* const* Z,
                                   const float* grad, float* dq, float* dk, float* de, float* dc, float* dflat, i64 size,
                                   int threads) {
    backward(N, K, L, H, first, count, start, room, q, k, flat, Z, grad, dq, dk, de, dc, dflat, size, threads);
}

#else

extern "C" std::int64_t unit_has_bf16(int) { return 0; }

#endif
