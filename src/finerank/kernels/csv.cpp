// Lines of a CSV file, read straight into columns.
//
// Only what is plain is read: no quotes, every line of as many fields as the header and none empty, whole numbers written as
// -?[0-9]+, others as -?[0-9]+(.[0-9]*)?([eE][+-]?[0-9]+)? or without what is before the point. Anything else is told, and left
// to who reads CSV in all its forms.
// n lines · F fields of a line

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <variant>
#include <vector>

#include "arrow.h"
#include "words.h"

using arrow::Array, arrow::Rows, arrow::Schema, arrow::View;
using words::i64, words::load, words::read_digits, words::u64;
using u32 = std::uint32_t;

namespace {

constexpr i64 FEW = 512;  // lines whose columns are read one after the other: they fit the processor's cache

// ---------------------------------------------------------------------------------------------- values

bool is_digit(char c) { return static_cast<unsigned char>(c - '0') <= 9; }

// [p, end), of at least one byte, as an int64.
bool read(const char* p, const char* end, i64* value) {
    if (read_digits(p, value) == end - p) return true;
    const bool negative = *p == '-';
    p += negative;
    if (p == end || end - p > 18) return false;
    i64 sum = 0;
    for (; p < end; p++) {
        if (!is_digit(*p)) return false;
        sum = sum * 10 + (*p - '0');
    }
    *value = negative ? -sum : sum;
    return true;
}

// As a float64, the nearest one. A number below 2^53 times or over a power of ten that is a float64 itself is rounded once
// (Clinger, How to Read Floating Point Numbers Accurately, 1990); what is longer is read by the library.
bool read(const char* p, const char* end, double* value) {
    constexpr double powers[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    const char* const start = p;
    const bool negative = *p == '-';
    p += negative;
    u64 digits = 0;
    i64 count = 0, exponent = 0;
    for (; p < end && is_digit(*p); p++, count++) digits = digits * 10 + (*p - '0');
    if (p < end && *p == '.') {
        for (p++; p < end && is_digit(*p); p++, count++, exponent--) digits = digits * 10 + (*p - '0');
    }
    if (count == 0) return false;
    if (p < end && (*p == 'e' || *p == 'E')) {
        p++;
        const bool below = p < end && *p == '-';
        p += p < end && (*p == '-' || *p == '+');
        if (p == end || end - p > 4) return false;
        i64 written = 0;
        for (; p < end && is_digit(*p); p++) written = written * 10 + (*p - '0');
        exponent += below ? -written : written;
    }
    if (p < end) return false;
    if (count <= 19 && digits <= u64{1} << 53 && -22 <= exponent && exponent <= 22) {
        const double whole = static_cast<double>(digits);
        const double found = exponent < 0 ? whole / powers[-exponent] : whole * powers[exponent];
        *value = negative ? -found : found;
        return true;
    }
#if defined(__cpp_lib_to_chars)
    const auto [stop, error] = std::from_chars(start, end, *value);
    return error == std::errc{} && stop == end;
#else
    (void)start;
    return false;
#endif
}

// ---------------------------------------------------------------------------------------------- columns

struct Lines {
    const char *text, *end;  // of all lines that are left; 64 bytes more may be read
    i64 first, n, fields;    // the number of the first line; how many there are
    bool returns;            // whether every line ends with \r\n, and not with \n
    std::vector<u32> marks;  // [1 + n F]: -1, then where separators and ends of lines are: a field lies between two
};

// Finds the fields of the next lines; false if they are not plain.
bool cut(Lines& lines, char separator) {
    const i64 count = lines.n * lines.fields;
    u32* const marks = lines.marks.data();
    marks[0] = ~u32{0};
    i64 found = 0;
    const i64 size = lines.end - lines.text;
    for (i64 at = 0; found < count && at < size; at += 64) {
        for (u64 here = words::either(lines.text + at, separator, '\n'); here; here &= here - 1) {
            marks[++found] = static_cast<u32>(at + __builtin_ctzll(here));
        }
    }
    if (found < count) return false;
    for (i64 line = 0; line < lines.n; line++) {  // every one of them ends here: all other marks are separators
        const u32 before = marks[line * lines.fields], end = marks[(line + 1) * lines.fields];
        if (lines.text[end] != '\n' || end == before + 1) return false;
        if (lines.returns && (lines.text[end - 1] != '\r' || end == before + 2)) return false;
    }
    return true;
}

// f(row, start, size) of a field of each line, as long as it says true.
template <class F>
bool each(const Lines& lines, i64 field, F f) {
    const char* const text = lines.text;
    const i64 first = lines.first, n = lines.n, fields = lines.fields;
    const u32 behind = lines.returns && field + 1 == fields;
    const u32* marks = lines.marks.data() + field;
    for (i64 line = 0; line < n; line++, marks += fields) {
        const u32 start = marks[0] + 1;
        if (!f(first + line, text + start, marks[1] - start - behind)) return false;
    }
    return true;
}

template <class T>
bool fill(Rows<T>& rows, const Lines& lines, i64 field) {
    T* const values = rows.values.get();
    return each(lines, field, [&](i64 row, const char* start, u32 size) {
        if (size) return read(start, start + size, values + row);
        rows.missing(row);
        return true;
    });
}

bool fill(Rows<View>& rows, const Lines& lines, i64 field) {
    View* const values = rows.values.get();
    return each(lines, field, [&](i64 row, const char* start, u32 size) {
        if (size == 0) {
            rows.missing(row);
        } else if (size <= View::inside) {  // two loads and masks, whatever the size
            const u32 front = std::min(size, 8u), back = size - front;
            const u64 low = load(start, 8) & ~u64{0} >> (64 - 8 * front), high = load(start + 8, 4) & ((u64{1} << 8 * back) - 1);
            values[row].size = size;
            std::memcpy(values[row].text(), &low, 8);
            std::memcpy(values[row].text() + 8, &high, 4);
        } else {
            if (rows.texts == nullptr) rows.texts = recycled::values<char>(lines.end - lines.text);  // what is not used costs nothing
            values[row] = arrow::view_of(start, size, rows.size);
            std::memcpy(rows.texts.get() + rows.size, start, size);
            rows.size += size;
        }
        return true;
    });
}

using Column = std::variant<Rows<i64>, Rows<double>, Rows<View>>;

enum Kind : i64 { SKIPPED, INTEGER, FLOAT, TEXT };

Column column_of(i64 kind, i64 n) {
    if (kind == INTEGER) return Rows<i64>(n);
    if (kind == FLOAT) return Rows<double>(n);
    return Rows<View>(n);
}

}  // namespace

// A first look at a block of whole lines: how many there are, -1 if they are not plain; whether all bytes are ASCII, and whether
// every line ends with \r\n.
extern "C" i64 csv_look(const char* text, i64 size, int* ascii, int* returns) {
    i64 lines = 0, others = 0;
    u64 all = 0;
    for (i64 at = 0; at < size; at += 64) {
        const char* const p = text + at;
        const u64 here = size - at < 64 ? (u64{1} << (size - at)) - 1 : ~u64{0};
        lines += __builtin_popcountll(words::either(p, '\n', '\n') & here);
        const u64 odd = words::either(p, '"', '\r') & here;
        if (odd != 0) {
            const u64 found = words::either(p, '\r', '\r') & here;
            if (found != odd) return -1;
            others += __builtin_popcountll(found);
        }
        for (int i = 0; i < 64; i += 8) all |= load(p + i, 8);
    }
    *ascii = !(all & 0x80 * words::EVERY);
    *returns = others > 0;
    return others == 0 || others == lines ? lines : -1;
}

// Gives all spare memory of columns back to the system.
extern "C" void columns_forget() { recycled::store.clear(); }

// Reads n lines, of `size` bytes and as `csv_look` found them, into the columns that are wanted, kinds [F]: the fields of one column.
// Returns 0, and hands nothing over, if the lines are not plain.
extern "C" int csv_read(const char* text, i64 size, i64 n, i64 fields, int separator, int returns, const i64* kinds, Schema* schema,
                        Array* array) {
    std::vector<std::pair<i64, Column>> wanted;
    for (i64 field = 0; field < fields; field++) {
        if (kinds[field] != SKIPPED) wanted.emplace_back(field, column_of(kinds[field], n));
    }
    Lines lines{text, text + size, 0, 0, fields, returns != 0, std::vector<u32>(1 + FEW * fields + 64)};  // there may be more marks where the last one is
    for (; lines.first < n; lines.first += lines.n) {
        lines.n = std::min(FEW, n - lines.first);
        if (!cut(lines, static_cast<char>(separator))) return 0;
        for (auto& [field, column] : wanted) {
            if (!std::visit([&, field = field](auto& rows) { return fill(rows, lines, field); }, column)) return 0;
        }
        lines.text += lines.marks[lines.n * fields] + 1;
    }
    if (lines.text != lines.end) return 0;
    auto made = std::make_unique<arrow::Fields>(wanted.size());
    for (std::size_t i = 0; i < wanted.size(); i++) {
        std::visit([&](auto& rows) { arrow::hand_over(std::move(rows), &made->schemas[i], &made->arrays[i]); }, wanted[i].second);
    }
    arrow::hand_over(std::move(made), n, schema, array);
    return 1;
}
