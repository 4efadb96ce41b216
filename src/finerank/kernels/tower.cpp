// A tower in bf16: linear layers with activations, and a last weight that makes a row's number of them. Forward and backward
// go through all layers for some rows at a time, which never leave the processor's cache in between.
//
// n rows · L layers · I width of an input · H of the layers' outputs · A rows that are added to the first layer's product
//
// The first layer is W_0·x_i + add[of_i]: the part of a request, or (of null) the bias alone, which is one row for all. Widths
// are the caller's; inside they are filled with zeros to multiples of 16. Gradients of weights are summed per thread and then
// in the order of the threads: the same numbers in every run.

#include <algorithm>
#include <cstring>
#include <vector>

#include "layers_bf16.h"

#ifdef __AVX512BF16__

namespace {

constexpr i64 BLOCK = 96, PANEL = 64;

inline i64 filled(i64 width) { return (width + 15) / 16 * 16; }

// Lanes of a vector that are among so many numbers.
INLINE __mmask16 within(i64 left) { return left >= 16 ? 0xffff : (1 << left) - 1; }

// B of a product, woven and in panels: [terms, up to 64 columns] each, one after the other.
struct Panels {
    i64 terms, columns;
    std::vector<two> at;

    // vector(term, column, mask): of a matrix of so many terms (even when filled) and columns, zero beyond
    template <class F>
    Panels(i64 deep, i64 wide, F vector) : terms(filled(deep) / 2), columns(filled(wide)), at(terms * columns) {
        for (i64 h = 0; h < columns; h += 16) {
            const i64 panel = h / PANEL * PANEL, width = std::min(PANEL, columns - panel);
            two* to = at.data() + panel * terms + h - panel;
            for (i64 d = 0; d < terms; d++) {
                const auto row = [&](i64 term) { return vector(term, h, term < deep ? within(wide - h) : __mmask16{}); };
                put(to + d * width, woven(rounded(row(2 * d), row(2 * d + 1))));
            }
        }
    }

    // A·B for an even number of rows
    template <class Begin, class End>
    void multiply_by(i64 rows, Left<two> left, Begin begin, End end) const {
        for (i64 panel = 0; panel < columns; panel += PANEL)
            multiply<true>(
                rows, std::min(PANEL, columns - panel), terms, left, at.data() + panel * terms,
                [=](i64 r, i64 h) INLINED { return begin(r, panel + h); },
                [=](i64 r, i64 h, auto& sums) INLINED { end(r, panel + h, sums); });
    }
};

struct Weights {
    const float* const* W;  // [H, I] each, rows `stride` apart
    const i64* stride;
    const float* const* b;  // of layers after the first
    const float* const* s;  // slopes
    const float* w;
};

std::vector<float> fill(const float* from, i64 width) {
    std::vector<float> out(filled(width));
    if (from) std::copy(from, from + width, out.begin());
    return out;
}

struct Layer {
    i64 in, out;  // filled
    std::vector<float> bias, slope;
};

std::vector<Layer> layers(i64 L, i64 I, const i64* H, const Weights& p) {
    std::vector<Layer> all;
    for (i64 l = 0; l < L; l++) all.push_back({filled(l ? H[l - 1] : I), filled(H[l]), fill(l ? p.b[l] : nullptr, H[l]), fill(p.s[l], H[l])});
    return all;
}

// Rows [low, high) of a thread; low is even.
struct Part {
    i64 low, high;
    Part(i64 n, int thread, int threads) : low(bound(n, thread, threads)), high(bound(n, thread + 1, threads)) {}
    static i64 bound(i64 n, int part, int parts) { return part == parts ? n : n / 2 * part / parts * 2; }
};

// x [rows, I] as rows of halves and (null: not wanted) woven, filled with zeros.
void round_rows(i64 rows, i64 I, const float* x, half* halves, two* twos_) {
    const i64 width = filled(I);
    for (i64 i = 0; i < rows; i += 2)
        for (i64 h = 0; h < width; h += 16) {
            const __mmask16 mask = within(I - h);
            const float* at = x + i * I + h;
            const __m512i both = rounded(_mm512_maskz_loadu_ps(mask, at), _mm512_maskz_loadu_ps(i + 1 < rows ? mask : 0, at + I));
            if (halves) put_rows(halves + i * width + h, width, both);
            if (twos_) put(twos_ + i / 2 * width + h, woven(both));
        }
}

// What is added to rows: the rows of a matrix that `of` says, or (null) its first.
struct Added {
    const float* from;
    const i64* of;
    i64 rows, width;

    INLINE __m512 operator()(i64 r, i64 h) const { return load(from + (of ? of[std::min(r, rows - 1)] * width : 0) + h); }
};

template <bool bent>
void forward(i64 n, i64 L, i64 I, const i64* H, const float* x, const float* add, const i64* of, Weights p, two* const* Z,
             float* out, int threads) {
    const std::vector<Layer> all = layers(L, I, H, p);
    std::vector<Panels> right;
    i64 widest = filled(I);
    for (i64 l = 0; l < L; l++) {
        const __m512i lanes = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                                 _mm512_set1_epi32(static_cast<int>(p.stride[l])));
        right.emplace_back(l ? H[l - 1] : I, H[l], [&](i64 i, i64 h, __mmask16 mask) {
            return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, lanes, p.W[l] + h * p.stride[l] + i, 4);
        });
        widest = std::max(widest, all[l].out);
    }
    const std::vector<float> w = fill(p.w, H[L - 1]);
#pragma omp parallel num_threads(threads)
    {
        std::vector<half> act[2] = {std::vector<half>(BLOCK * widest), std::vector<half>(BLOCK * widest)};
        std::vector<float> scores(BLOCK * 16);
        const Part mine(n, omp_get_thread_num(), threads);
        for (i64 low = mine.low; low < mine.high; low += BLOCK) {
            const i64 rows = std::min(BLOCK, mine.high - low);
            round_rows(rows, I, x + low * I, act[1].data(), nullptr);
            for (i64 l = 0; l < L; l++) {
                const Layer& layer = all[l];
                const i64 width = layer.out;
                const Left<two> left{twos(act[(l + 1) % 2].data()), layer.in / 2, 1};
                two* z = Z ? Z[l] + low / 2 * width : nullptr;
                const Forth<bent, false> to{width, layer.slope.data(), z, act[l % 2].data(), nullptr, nullptr};
                const Forth<bent, true> score{width, layer.slope.data(), z, nullptr, w.data(), scores.data()};
                const Added begin{l ? layer.bias.data() : add, l || !of ? nullptr : of + low, rows, width};
                if (l + 1 < L)
                    right[l].multiply_by(even(rows), left, begin, to);
                else
                    right[l].multiply_by(even(rows), left, begin, score);
            }
            add_up(rows, scores.data(), 0, out + low);
        }
    }
}

// Sums of rows by request; those of the first request of a thread, which another may share, into `edge`. of null: all there.
struct Requests {
    const i64* of;
    i64 rows, first, width;
    float *sums, *edge;

    template <int R>
    INLINE void operator()(i64 i, i64 h, __m512 (&g)[R]) const {
        if (!of) return Columns{edge}(i, h, g);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const i64 request = of[std::min(i + r, rows - 1)];
            float* at = (request == first ? edge : sums + request * width) + h;
            store(at, load(at) + V<float>(g[r]));
        }
    }
};

// What the gradients of weights are summed in: one a thread.
struct Sums {
    std::vector<std::vector<float>> W, b, s;
    std::vector<float> w, edge;
};

template <bool bent>
void backward(i64 n, i64 L, i64 I, const i64* H, const float* x, const i64* of, Weights p, two* const* Z, const float* grad,
              float* dx, i64 A, float* dadd, float* const* dW, float* const* db, float* const* ds, float* dw, int threads) {
    const std::vector<Layer> all = layers(L, I, H, p);
    std::vector<Panels> right;
    i64 widest = filled(I);
    for (i64 l = 0; l < L; l++) {
        right.emplace_back(H[l], l ? H[l - 1] : I, [&](i64 h, i64 i, __mmask16 mask) {
            return _mm512_maskz_loadu_ps(mask, p.W[l] + h * p.stride[l] + i);
        });
        widest = std::max(widest, all[l].out);
    }
    const std::vector<float> w = fill(p.w, H[L - 1]);
    const i64 first = all[0].out;
    std::vector<Sums> sums(threads);
    std::fill(dadd, dadd + A * first, 0.0f);
#pragma omp parallel num_threads(threads)
    {
        Sums& d = sums[omp_get_thread_num()];
        for (const Layer& layer : all) {
            d.W.emplace_back(layer.out * layer.in);
            d.b.emplace_back(layer.out);
            d.s.emplace_back(layer.out);
        }
        d.w.resize(all[L - 1].out), d.edge.resize(first);
        const i64 room = BLOCK * widest;
        std::vector<half> here(room), next(room);  // gradients of a layer's Z, and of that below
        std::vector<two> here_woven(room / 2), next_woven(room / 2), act(room / 2);
        std::vector<float> g(BLOCK + 1);
        const Part mine(n, omp_get_thread_num(), threads);
        for (i64 low = mine.low; low < mine.high; low += BLOCK) {
            const i64 rows = std::min(BLOCK, mine.high - low);
            std::memcpy(g.data(), grad + low, rows * sizeof(float));
            g[rows] = 0;
            auto back = [&](i64 l, half* halves, two* woven) {
                const Layer& layer = all[l];
                const Requests sum{l || !of ? nullptr : of + low, rows, of ? of[mine.low] : 0, first, dadd, l ? d.b[l].data() : d.edge.data()};
                return Back<bent, Requests>{layer.out, layer.slope.data(), d.s[l].data(), Z[l] + low / 2 * layer.out,
                                            {halves, woven, act.data()}, sum};
            };
            scores_back(even(rows), g.data(), w.data(), d.w.data(), back(L - 1, here.data(), here_woven.data()));
            for (i64 l = L - 1; l >= 0; l--) {
                const Layer& layer = all[l];
                const Left<two> left{twos(here.data()), layer.out / 2, 1};
                if (l) {
                    right[l].multiply_by(even(rows), left, Nothing{}, back(l - 1, next.data(), next_woven.data()));
                } else {
                    if (dx) right[l].multiply_by(even(rows), left, Nothing{}, [=, to = dx + low * I](i64 i, i64 h, auto& g) INLINED {
                        const __mmask16 mask = within(I - h);
                        constexpr int R = sizeof(g) / sizeof(g[0]);
#pragma GCC unroll 8
                        for (int r = 0; r < R; r++)
                            if (i + r < rows) _mm512_mask_storeu_ps(to + (i + r) * I + h, mask, g[r]);
                    });
                    round_rows(rows, I, x + low * I, nullptr, act.data());
                }
                const two* below = !l || bent ? act.data() : Z[l - 1] + low / 2 * layer.in;
                accumulate(layer.out, layer.in, even(rows) / 2, Left<two>{here_woven.data(), 1, layer.out}, below, d.W[l].data());
                std::swap(here, next);
                std::swap(here_woven, next_woven);
            }
        }
    }
    auto total = [&](auto part, i64 width, float* to) {
        std::fill(to, to + width, 0.0f);
        for (const Sums& d : sums)
            for (i64 h = 0; h < width; h++) to[h] += part(d)[h];
    };
    for (i64 l = 0; l < L; l++) {
        const i64 in = l ? H[l - 1] : I;
        for (i64 h = 0; h < H[l]; h++) total([&](const Sums& d) { return d.W[l].data() + h * all[l].in; }, in, dW[l] + h * in);
        if (l) total([&](const Sums& d) { return d.b[l].data(); }, H[l], db[l]);
        total([&](const Sums& d) { return d.s[l].data(); }, H[l], ds[l]);
    }
    total([](const Sums& d) { return d.w.data(); }, H[L - 1], dw);
    for (int thread = 0; thread < threads; thread++) {
        const Part part(n, thread, threads);
        if (part.low >= part.high) continue;
        float* to = dadd + (of ? of[part.low] : 0) * first;
        for (i64 h = 0; h < first; h++) to[h] += sums[thread].edge[h];
    }
}

}  // namespace

// add and dadd are [A, filled(H[0])]; layers of kept Z are [(n + 1) / 2, filled(H)] twos.
extern "C" void tower_forward(i64 n, i64 L, i64 I, const i64* H, i64 bent, const float* x, const float* add, const i64* of,
                              const float* const* W, const i64* stride, const float* const* b, const float* const* s,
                              const float* w, two* const* Z, float* out, int threads) {
    (bent ? forward<true> : forward<false>)(n, L, I, H, x, add, of, {W, stride, b, s, w}, Z, out, threads);
}
extern "C" void tower_backward(i64 n, i64 L, i64 I, const i64* H, i64 bent, const float* x, const i64* of,
                               const float* const* W, const i64* stride, const float* const* s, const float* w, two* const* Z,
                               const float* grad, float* dx, i64 A, float* dadd, float* const* dW, float* const* db,
                               float* const* ds, float* dw, int threads) {
    const std::vector<const float*> none(L);
    (bent ? backward<true> : backward<false>)(n, L, I, H, x, of, {W, stride, none.data(), s, w}, Z, grad, dx, A, dadd, dW, db,
                                              ds, dw, threads);
}

#endif
