// Rows of embedding tables: which ones a batch touches, the gradient of each, and the step of lazy Adam.
//
// V rows of a table · D its width · n lookups · U distinct rows among them

#include <omp.h>

#include <cmath>
#include <cstdint>
#include <vector>

using i64 = std::int64_t;

namespace {

// Rows of a large table lie in no cache: a loop asks for each this many rows before it comes to it.
constexpr i64 AHEAD = 8;

template <class T>
inline void ask_for(const T* row, i64 D) {
    for (i64 d = 0; d < D; d += 64 / static_cast<i64>(sizeof(T))) __builtin_prefetch(row + d, 1);
}

}  // namespace

// The distinct ids in the order of their first occurrence, and for each id where it stands among them: a hash table with
// room for all of them, so that nothing depends on V. Returns U.
extern "C" i64 distinct(i64 n, const i64* ids, i64* rows, i64* local, int) {
    int bits = 4;
    while ((i64{1} << bits) < 2 * n) bits++;
    static thread_local std::vector<std::int32_t> slots;  // where among the rows, or -1
    slots.assign(std::size_t{1} << bits, -1);
    const std::size_t last = slots.size() - 1;
    i64 U = 0;
    for (i64 i = 0; i < n; i++) {
        const i64 id = ids[i];
        std::size_t slot = static_cast<std::uint64_t>(id) * 0x9E3779B97F4A7C15u >> (64 - bits);
        while (slots[slot] >= 0 && rows[slots[slot]] != id) slot = (slot + 1) & last;
        if (slots[slot] < 0) {
            slots[slot] = static_cast<std::int32_t>(U);
            rows[U++] = id;
        }
        local[i] = slots[slot];
    }
    return U;
}

namespace {

// The given rows of a weight [V, D] side by side: out [n, D]. Returns how many of them there are not.
template <class T>
i64 gather(i64 n, i64 V, i64 D, const i64* rows, const T* weight, T* out, int threads) {
    i64 missing = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : missing)
    for (i64 i = 0; i < n; i++) {
        if (i + AHEAD < n) ask_for(weight + rows[i + AHEAD] * D, D);
        if (rows[i] < 0 || rows[i] >= V) {
            missing++;
            continue;
        }
        const T* from = weight + rows[i] * D;
        T* to = out + i * D;
#pragma omp simd
        for (i64 d = 0; d < D; d++) to[d] = from[d];
    }
    return missing;
}

// grad [n, D] summed into out [U, D], row by row in the order of the lookups. A thread owns a range of the rows, so the
// numbers do not depend on how many there are.
template <class T>
void sum_rows(i64 n, i64 U, i64 D, const i64* local, const T* grad, T* out, int threads) {
#pragma omp parallel num_threads(threads)
    {
        const int thread = omp_get_thread_num();
        const i64 low = U * thread / threads, high = U * (thread + 1) / threads;
        for (i64 i = low * D; i < high * D; i++) out[i] = 0;
        for (i64 i = 0; i < n; i++) {
            const i64 row = local[i];
            if (row < low || row >= high) continue;
            T* to = out + row * D;
            const T* from = grad + i * D;
#pragma omp simd
            for (i64 d = 0; d < D; d++) to[d] += from[d];
        }
    }
}

// m, v and w of the given rows in one pass. mine: per row 1/(1 - b1^t) and 1/sqrt(1 - b2^t), or null: `scale`, `root` for all
template <class T>
void adam(i64 U, i64 D, const i64* rows, const T* grad, T* weight, T* first, T* second, double b1, double b2, double eps,
          double size, double root, const T* mine, int threads) {
    const T a = static_cast<T>(1 - b1), b = static_cast<T>(1 - b2), keep = static_cast<T>(b2), e = static_cast<T>(eps);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 u = 0; u < U; u++) {
        if (u + AHEAD < U) {
            const i64 next = rows[u + AHEAD] * D;
            ask_for(weight + next, D);
            ask_for(first + next, D);
            ask_for(second + next, D);
        }
        const i64 at = rows[u] * D;
        const T* g = grad + u * D;
        T *w = weight + at, *m = first + at, *v = second + at;
        const T step = static_cast<T>(size) * (mine ? mine[2 * u] : 1), scale = mine ? mine[2 * u + 1] : static_cast<T>(root);
#pragma omp simd
        for (i64 d = 0; d < D; d++) {
            m[d] += a * (g[d] - m[d]);
            v[d] = keep * v[d] + b * g[d] * g[d];
            w[d] -= step * m[d] / (std::sqrt(v[d]) * scale + e);
        }
    }
}

}  // namespace

#define EXPORT(T, name)                                                                                                     \
    extern "C" void sum_rows_##name(i64 n, i64 U, i64 D, const i64* local, const T* grad, T* out, int threads) {            \
        sum_rows<T>(n, U, D, local, grad, out, threads);                                                                    \
    }                                                                                                                       \
    extern "C" i64 gather_##name(i64 n, i64 V, i64 D, const i64* rows, const T* weight, T* out, int threads) {              \
        return gather<T>(n, V, D, rows, weight, out, threads);                                                              \
    }                                                                                                                       \
    extern "C" void adam_##name(i64 U, i64 D, const i64* rows, const T* grad, T* weight, T* first, T* second, double b1,    \
                                double b2, double eps, double size, double root, const T* mine, int threads) {              \
        adam<T>(U, D, rows, grad, weight, first, second, b1, b2, eps, size, root, mine, threads);                           \
    }
EXPORT(float, f32)
EXPORT(double, f64)
