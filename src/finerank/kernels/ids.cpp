// Coded columns side by side: the symbols of a row's codes, one row after the other, as a data set keeps them.

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

template <class RowOf>
void place(const Column& column, i64 start, i64 stop, i64 stride, RowOf row_of) {
    const Column c = column;
    if (c.distances) {
        for (i64 i = start; i < stop; i++) {
            const i64 distance = c.codes[row_of(i)];
            c.out[i * stride] = c.symbols[distance == std::numeric_limits<i32>::min() ? 0 : distance - c.base];
        }
    } else {
        const auto* codes = reinterpret_cast<const std::uint32_t*>(c.codes);
        for (i64 i = start; i < stop; i++) c.out[i * stride] = c.symbols[codes[row_of(i)]];
    }
}

}  // namespace

// n rows: those that `rows` names, or, without it, those from `first` on.
extern "C" void ids_place(const Column* columns, i64 n_columns, const i64* rows, i64 first, i64 n, i64 stride) {
    for (i64 start = 0; start < n; start += FEW) {
        const i64 stop = std::min(n, start + FEW);
        for (const Column* column = columns; column < columns + n_columns; column++) {
            if (rows != nullptr) {
                place(*column, start, stop, stride, [rows](i64 i) { return rows[i]; });
            } else {
                place(*column, start, stop, stride, [first](i64 i) { return first + i; });
            }
        }
    }
}
