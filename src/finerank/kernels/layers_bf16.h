// What follows, in registers, the product of a layer in bf16 and that of its gradient. Rows go by pairs, the even one first.
//
// A layer's Z is kept rounded and woven by rows: so the gradient of the next layer's weights takes it. Where there is no
// slope, max(z, 0) stands for it.

#pragma once

#include "activation.h"
#include "bf16.h"

#ifdef __AVX512BF16__

namespace {

inline i64 even(i64 t) { return t + (t & 1); }

inline const two* twos(const half* at) { return reinterpret_cast<const two*>(at); }

struct Nothing {
    INLINE __m512 operator()(i64, i64) const { return _mm512_setzero_ps(); }
};

// Keeps Z (null: not wanted) and gives its activation by rows; for the last layer, the vectors whose sums are the rows' scores.
template <bool bent, bool last>
struct Forth {
    i64 width;
    const float* slope;
    two* z;
    half* act;
    const float* w;
    float* score;

    template <int R>
    INLINE void operator()(i64 i, i64 h, __m512 (&sums)[R]) const {
        const Activation<float, bent> of{load(slope + h)};
        two* to = z + i / 2 * width + h;
#pragma GCC unroll 4
        for (int r = 0; r < R; r += 2, to += width) {
            const __m512 a0 = of(sums[r]), a1 = of(sums[r + 1]);
            const __m512i both = rounded(a0, a1);
            if (z) put(to, woven(bent ? rounded(sums[r], sums[r + 1]) : both));
            if constexpr (last) {
                const V<float> wh = load(w + h);
                float* at = score + (i + r) * 16;
                if (h) {
                    store(at, load(at) + wh * a0), store(at + 16, load(at + 16) + wh * a1);
                } else {
                    store<float>(at, wh * a0), store<float>(at + 16, wh * a1);
                }
            } else {
                put_rows(act + (i + r) * width + h, width, both);
            }
        }
    }
};

// What a way back gives: the gradient of Z by rows and woven, and (with a slope) the activation woven.
struct Gradient {
    half* rows;
    two *woven, *act;

    Gradient from(i64 row, i64 width) const { return {rows + row * width, woven + row / 2 * width, act + row / 2 * width}; }
};

// From the gradient of an activation to that of Z. sum(i, h, g): told the gradients of R rows, for what is summed of them.
template <bool bent, class Sum>
struct Back {
    i64 width;
    const float* slope;
    float* dslope;
    const two* z;
    Gradient to;
    Sum sum;

    template <int R>
    INLINE void operator()(i64 i, i64 h, __m512 (&g)[R]) const {
        const Activation<float, bent> of{load(slope + h)};
        V<float> ds = {};
        i64 at = i / 2 * width + h;
        half* rows = to.rows + i * width + h;
#pragma GCC unroll 4
        for (int r = 0; r < R; r += 2, at += width, rows += 2 * width) {
            const __m512i both = load_twos(z + at);
            const V<float> z0 = even_row(both), z1 = odd_row(both);
            if (bent) put(to.act + at, woven(rounded(of(z0), of(z1))));
            V<float> g0 = g[r], g1 = g[r + 1];
            of.back(z0, g0, ds), of.back(z1, g1, ds);
            g[r] = g0, g[r + 1] = g1;
            const __m512i out = rounded(g0, g1);
            put_rows(rows, width, out);
            put(to.woven + at, woven(out));
        }
        if (bent) store(dslope + h, load(dslope + h) + ds);
        sum(i, h, g);
    }
};

// Sums of all rows.
struct Columns {
    float* sum;

    template <int R>
    INLINE void operator()(i64, i64 h, __m512 (&g)[R]) const {
        V<float> total = load(sum + h);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) total += V<float>(g[r]);
        store(sum + h, total);
    }
};

// The way back through scores: `rows`, even, of them with gradients g; that of w is added to dw.
template <bool bent, class Sum>
void scores_back(i64 rows, const float* g, const float* w, float* dw, const Back<bent, Sum>& back) {
    for (i64 h = 0; h < back.width; h += 16) {
        const Activation<float, bent> of{load(back.slope + h)};
        const V<float> wh = load(w + h);
        V<float> weights = load(dw + h);
        for (i64 i = 0; i < rows; i += 2) {
            const __m512i both = load_twos(back.z + i / 2 * back.width + h);
            weights += g[i] * of(even_row(both)) + g[i + 1] * of(odd_row(both));
            __m512 grad[2] = {g[i] * wh, g[i + 1] * wh};
            back(i, h, grad);
        }
        store(dw + h, weights);
    }
}

// Sums of vectors of sixteen: [rows, 16] -> [rows], plus a constant.
inline void add_up(i64 rows, const float* from, float bias, float* to) {
    for (i64 i = 0; i < rows; i++) to[i] = _mm512_reduce_add_ps(load(from + i * 16)) + bias;
}

}  // namespace

#endif
