// Coded columns: their symbols side by side, one row after the other, as a data set keeps them; and how often a code occurs.

#include <algorithm>
#include <cstdint>
#include <limits>

using i64 = std::int64_t;
using i32 = std::int32_t;

namespace {

constexpr i64 FEW = 256;  // rows of all columns that fit the innermost cache

struct Column {  // as `kernels.ids` lays it out
    const i32* codes;    // or distances, the least int32 where missing
    i64 base;            // the distance whose code is 0, if they are distances; else 0, and the codes are unsigned
    i64 distances;       // whether they are
    const i32* symbols;  // of each code
    i32* out;            // of row 0; rows lie `stride` apart
};

// f(i, code) for start <= i < stop; row_of(i): which row of the column is meant.
template <class RowOf, class F>
void each(const Column& column, i64 start, i64 stop, RowOf row_of, F f) {
    const Column c = column;
    if (c.distances) {
        for (i64 i = start; i < stop; i++) {
            const i64 distance = c.codes[row_of(i)];
            f(i, distance == std::numeric_limits<i32>::min() ? 0 : distance - c.base);
        }
    } else {
        const auto* codes = reinterpret_cast<const std::uint32_t*>(c.codes);
        for (i64 i = start; i < stop; i++) f(i, codes[row_of(i)]);
    }
}

// The same of the rows that `rows` names, or, without it, of those from `first` on.
template <class F>
void each(const Column& column, const i64* rows, i64 first, i64 start, i64 stop, F f) {
    if (rows != nullptr) {
        each(column, start, stop, [rows](i64 i) { return rows[i]; }, f);
    } else {
        each(column, start, stop, [first](i64 i) { return first + i; }, f);
    }
}

// Adds rows of these weights to the counts of their codes; see `ids_count`.
template <class Weight>
i64 count(const Column& column, const i64* rows, i64 first, i64 n, const Weight* weights, i64* counts, i64* firsts, i64 seen) {
    each(column, rows, first, 0, n, [&](i64 i, i64 code) {
        if (weights[i] == 0) return;
        counts[code] += weights[i];
        if (firsts != nullptr) firsts[code] = std::min(firsts[code], seen);
        seen++;
    });
    return seen;
}

}  // namespace

// n rows: those that `rows` names, or, without it, those from `first` on.
extern "C" void ids_place(const Column* columns, i64 n_columns, const i64* rows, i64 first, i64 n, i64 stride) {
    for (i64 start = 0; start < n; start += FEW) {
        const i64 stop = std::min(n, start + FEW);
        for (const Column* column = columns; column < columns + n_columns; column++) {
            const i32* const symbols = column->symbols;
            i32* const out = column->out;
            each(*column, rows, first, start, stop, [=](i64 i, i64 code) { out[i * stride] = symbols[code]; });
        }
    }
}

// Adds rows, named as for `ids_place`, to the counts of their codes: as often as their weights say, of 1 or 8 bytes each. A row of
// weight 0 is no row. firsts: in which row each code came first, or null. Rows have the numbers from `seen` on; returns the next one.
extern "C" i64 ids_count(const Column* column, const i64* rows, i64 first, i64 n, const void* weights, i64 bytes, i64* counts,
                         i64* firsts, i64 seen) {
    if (bytes == 1) return count(*column, rows, first, n, static_cast<const std::uint8_t*>(weights), counts, firsts, seen);
    return count(*column, rows, first, n, static_cast<const i64*>(weights), counts, firsts, seen);
}
