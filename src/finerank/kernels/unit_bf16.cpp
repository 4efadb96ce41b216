// DIN's activation unit with its products in bf16, summed in float: unit.cpp says what is computed and how.
//
// Differences: every candidate has an even number of rows in what is kept (`room`: where they begin), since products over
// pairs take two at a time; where it has an odd number of pairs the last row is none, and its gradient is zero. What is kept
// is as layers_bf16.h says. Gradients are summed, and handed over, in float.

#include "layers_bf16.h"
#include "unit.h"

#ifdef __AVX512BF16__

namespace {

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

// M = A + B·diag(q), woven: its rows 2i and 2i + 1 are those of A and B [rows, N]; q(row, column) gives a vector
template <class Q>
void woven_matrix(i64 rows, i64 N, const float* A, const float* B, two* M, Q q) {
    for (i64 i = 0; i < rows; i += 2)
        for (i64 j = 0; j < N; j += 16) {
            const float *a = A + i * N + j, *b = B + i * N + j;
            put(M + i / 2 * N + j, woven(rounded(load(a) + q(i, j) * load(b), load(a + N) + q(i + 1, j) * load(b + N))));
        }
}

template <bool bent>
void forward(i64 N, i64 K, i64 L, const i64* H, const i64* first, const i64* count, const i64* start, const i64* room,
             const float* q, const float* k, const float* e, const Given<const float>& given, two* const* Z, float* out,
             int threads) {
    const std::vector<float> flat = packed(given, K, L, H);
    const Shared<const float> p(flat.data(), K, L, H);
    std::vector<float> At(K * H[0]), Bt(K * H[0]), Ct(K * H[0]);
    transpose(H[0], K, p.A, At.data());
    transpose(H[0], K, p.B, Bt.data());
    transpose(H[0], K, p.C, Ct.data());
    std::vector<std::vector<two>> W(1);
    for (i64 l = 1; l < L; l++) {
        std::vector<float> turned(H[l] * H[l - 1]);
        transpose(H[l], H[l - 1], p.W[l], turned.data());
        W.emplace_back(turned.size() / 2);
        weave(H[l - 1], H[l], turned.data(), W.back().data(), nullptr);
    }
    const i64 most = N ? even(*std::max_element(count, count + N)) : 0, widest = *std::max_element(H, H + L);
#pragma omp parallel num_threads(threads)
    {
        const i64 room_for = (TOGETHER + most) * widest;
        std::vector<half> act[2] = {std::vector<half>(room_for), std::vector<half>(room_for)}, keys(most * K);
        std::vector<float> partial((TOGETHER + most) * 16);  // of a row's score
        std::vector<two> M(K / 2 * H[0]);
        Keys held{k, first, count, K};
        const Range mine = share(N, first, count, omp_get_thread_num(), threads);
        const std::vector<float> c = of_candidates(mine, K, H[0], q, Ct.data(), p.b[0]);
        in_blocks(mine, [&](i64 n) { return even(count[n]); }, [&](i64 low, i64 high, i64 rows) {
            auto forth = [&](i64 l, i64 row) {  // what follows the product of layer l, from a row of the block on
                return Forth<bent, false>{H[l], p.s[l], Z ? Z[l] + (room[low] + row) / 2 * H[l] : nullptr,
                                          act[l % 2].data() + row * H[l], p.w, partial.data() + row * 16};
            };
            // a product whose result follows, as the last layer's or another's
            auto layer = [&](i64 l, i64 row, i64 rows, i64 in, Left<two> left, const two* right, auto begin) {
                const auto to = forth(l, row);
                if (l + 1 < L)
                    multiply<true>(rows, H[l], in / 2, left, right, begin, to);
                else
                    multiply<true>(rows, H[l], in / 2, left, right, begin, Forth<bent, true>{to.width, to.slope, to.z, to.act, to.w, to.score});
            };
            i64 row = 0;
            for (i64 n = low; n < high; row += even(count[n++])) {
                const i64 t = count[n];
                if (!t) continue;
                if (held.changed(n)) weave(t, K, held.at(n), nullptr, keys.data());
                woven_matrix(K, H[0], At.data(), Bt.data(), M.data(),
                             [=, qn = q + n * K](i64 i, i64) INLINED { return V<float>{} + qn[i]; });
                const float *cn = c.data() + (n - mine.low) * H[0], *en = e ? e + first[n] * H[0] : nullptr;
                const Left<two> left{twos(keys.data()), K / 2, 1};
                layer(0, row, even(t), K, left, M.data(), [=, width = H[0]](i64 i, i64 h) INLINED {
                    return __m512(en ? load(cn + h) + load(en + std::min(i, t - 1) * width + h) : load(cn + h));
                });
            }
            for (i64 l = 1; l < L; l++)
                layer(l, 0, rows, H[l - 1], Left<two>{twos(act[(l - 1) % 2].data()), H[l - 1] / 2, 1}, W[l].data(),
                      [b = p.b[l]](i64, i64 h) INLINED { return __m512(load(b + h)); });
            row = 0;
            for (i64 n = low; n < high; row += even(count[n++]))
                add_up(count[n], partial.data() + row * 16, *p.bias, out + start[n]);
        });
    }
}

template <bool bent>
void backward(i64 N, i64 K, i64 L, const i64* H, const i64* first, const i64* count, const i64* start, const i64* room,
              const float* q, const float* k, const Given<const float>& given, two* const* Z, const float* grad, float* dq,
              float* dk, float* de, const Given<float>& gradients, int threads) {
    const std::vector<float> flat = packed(given, K, L, H);
    const Shared<const float> p(flat.data(), K, L, H);
    const i64 size = flat.size();
    std::vector<std::vector<two>> W(1);
    for (i64 l = 1; l < L; l++) {
        W.emplace_back(H[l] * H[l - 1] / 2);
        weave(H[l], H[l - 1], p.W[l], W.back().data(), nullptr);
    }
    const i64 most = N ? even(*std::max_element(count, count + N)) : 0, widest = *std::max_element(H, H + L);
    std::vector<float> sums(size * threads);
#pragma omp parallel num_threads(threads)
    {
        Shared<float> d(sums.data() + size * omp_get_thread_num(), K, L, H);
        const i64 room_for = (TOGETHER + most) * widest;
        // the gradient of a layer's Z, by rows and woven, and that of the layer below
        std::vector<half> here(room_for), next(room_for);
        std::vector<two> here_woven(room_for / 2), next_woven(room_for / 2);
        std::vector<two> act(bent ? room_for / 2 : 0), M(K * H[0] / 2), keys(most * K / 2);
        std::vector<float> g(TOGETHER + most);
        Keys held{k, first, count, K};
        const Range mine = share(N, first, count, omp_get_thread_num(), threads);
        std::vector<float> dc((mine.high - mine.low) * H[0]);
        in_blocks(mine, [&](i64 n) { return even(count[n]); }, [&](i64 low, i64 high, i64 rows) {
            for (i64 n = low, at = 0; n < high; at += even(count[n++])) {
                std::memcpy(g.data() + at, grad + start[n], count[n] * sizeof(float));
                if (count[n] & 1) g[at + count[n]] = 0;
            }
            for (i64 i = 0; i < rows; i++) *d.bias += g[i];
            // f(row, rows, sum) for layer l: all rows at once, but for the first layer, where each candidate has sums of its own
            auto each = [&](i64 l, auto f) {
                if (l) return f(i64{0}, rows, d.b[l]);
                for (i64 n = low, at = 0; n < high; at += even(count[n++])) f(at, even(count[n]), dc.data() + (n - mine.low) * H[0]);
            };
            auto back = [&](i64 l, i64 row, float* sum, Gradient to) {
                return Back<bent, Columns>{H[l], p.s[l], d.s[l], Z[l] + (room[low] + row) / 2 * H[l], to.from(row, H[l]), {sum}};
            };
            each(L - 1, [&](i64 row, i64 many, float* sum) {
                const Gradient to{here.data(), here_woven.data(), act.data()};
                scores_back(many, g.data() + row, p.w, d.w, back(L - 1, row, sum, to));
            });
            for (i64 l = L - 1; l > 0; l--) {
                const i64 width = H[l], in = H[l - 1];
                each(l - 1, [&](i64 row, i64 many, float* sum) {
                    const Left<two> left{twos(here.data()) + row * width / 2, width / 2, 1};
                    const Gradient to{next.data(), next_woven.data(), act.data()};
                    multiply<true>(many, in, width / 2, left, W[l].data(), Nothing{}, back(l - 1, row, sum, to));
                });
                accumulate(width, in, rows / 2, Left<two>{here_woven.data(), 1, width},
                           bent ? act.data() : Z[l - 1] + room[low] / 2 * in, d.W[l]);
                std::swap(here, next);
                std::swap(here_woven, next_woven);
            }
            i64 row = 0;
            for (i64 n = low; n < high; row += even(count[n++])) {
                const i64 t = count[n];
                if (!t) continue;
                const two *dz = twos(here.data()) + row * H[0] / 2, *dz_woven = here_woven.data() + row / 2 * H[0];
                if (de)
                    for (i64 i = 0; i < t; i += 2)
                        for (i64 h = 0; h < H[0]; h += 16) {
                            const __m512i both = load_twos(dz_woven + i / 2 * H[0] + h);
                            float* to = de + (first[n] + i) * H[0] + h;
                            store(to, load(to) + V<float>(even_row(both)));
                            if (i + 1 < t) store(to + H[0], load(to + H[0]) + V<float>(odd_row(both)));
                        }
                const float* qn = q + n * K;
                woven_matrix(H[0], K, p.A, p.B, M.data(), [=](i64, i64 i) INLINED { return load(qn + i); });
                accumulate(t, K, H[0] / 2, Left<two>{dz, H[0] / 2, 1}, M.data(), dk + first[n] * K);
                if (held.changed(n)) weave(t, K, held.at(n), keys.data(), nullptr);
                matrix_backward(H[0], K, even(t) / 2, Left<two>{dz_woven, 1, H[0]}, keys.data(), p.B, qn, d.A, d.B, dq + n * K);
            }
        });
        candidates_backward(mine, K, H[0], q, p.C, dc.data(), d.C, d.b[0], dq);
    }
    unpack(Shared<float>(summed(sums, size, threads), K, L, H), gradients, K, L, H);
}

}  // namespace

extern "C" i64 unit_has_bf16(int) { return 1; }
extern "C" void unit_forward_bf16(i64 N, i64 K, i64 L, const i64* H, i64 bent, const i64* first, const i64* count,
                                  const i64* start, const i64* room, const float* q, const float* k, const float* e,
                                  const i64* layout, const float* const* W, const float* const* b, const float* const* s,
                                  const float* w, const float* bias, two* const* Z, float* out, int threads) {
    (bent ? forward<true> : forward<false>)(N, K, L, H, first, count, start, room, q, k, e, {layout, W, b, s, w, bias}, Z, out,
                                            threads);
}
extern "C" void unit_backward_bf16(i64 N, i64 K, i64 L, const i64* H, i64 bent, const i64* first, const i64* count,
                                   const i64* start, const i64* room, const float* q, const float* k, const i64* layout,
                                   const float* const* W, const float* const* b, const float* const* s, const float* w,
                                   const float* bias, two* const* Z, const float* grad, float* dq, float* dk, float* de,
                                   float* const* dW, float* const* db, float* const* ds, float* dw, float* dbias, int threads) {
    (bent ? backward<true> : backward<false>)(N, K, L, H, first, count, start, room, q, k, {layout, W, b, s, w, bias}, Z, grad,
                                              dq, dk, de, {layout, dW, db, ds, dw, dbias}, threads);
}

#else

extern "C" std::int64_t unit_has_bf16(int) { return 0; }

#endif
