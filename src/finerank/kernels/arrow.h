// Arrow's C data interface, the form in which columns pass between Polars and the loops without being copied.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "recycled.h"

namespace arrow {

using i64 = std::int64_t;
using u32 = std::uint32_t;

struct Schema {
    const char *format, *name, *metadata;
    i64 flags, n_children;
    Schema **children, *dictionary;
    void (*release)(Schema*);
    void* own;
};

struct Array {
    i64 length, null_count, offset, n_buffers, n_children;
    const void** buffers;
    Array **children, *dictionary;
    void (*release)(Array*);
    void* own;
};

struct Stream {
    int (*get_schema)(Stream*, Schema*);
    int (*get_next)(Stream*, Array*);
    const char* (*get_last_error)(Stream*);
    void (*release)(Stream*);
    void* own;
};

struct View {  // 16 bytes: up to 12 bytes of text within it, zeros behind, or its first 4 and where to find it
    static constexpr u32 inside = 12;
    u32 size;
    char start[4];
    std::int32_t buffer, offset;

    char* text() { return reinterpret_cast<char*>(this) + sizeof size; }
    const char* text() const { return reinterpret_cast<const char*>(this) + sizeof size; }
};

constexpr i64 WINDOW = i64{1} << 30;  // offsets have 32 bits: a buffer begins at every multiple of it, and reaches over the next

// A text that lies at `at` of the texts of its column, once they are all there; p: where it is now.
inline View view_of(const char* p, u32 size, i64 at, i64 window = WINDOW) {
    View view{size, {}, 0, 0};
    if (size <= View::inside) {
        std::memcpy(view.text(), p, size);
    } else {
        std::memcpy(view.start, p, sizeof view.start);
        view.buffer = static_cast<std::int32_t>(at / window);
        view.offset = static_cast<std::int32_t>(at % window);
    }
    return view;
}

// Rows [n] of one column, to be handed over, every one of them to be set or, if it is missing, to be told.
template <class T>
struct Rows {
    i64 n, nulls = 0;
    recycled::Values<T> values;
    recycled::Values<char> texts;     // of views: those that do not fit inside
    i64 size = 0;                     // of the texts
    std::vector<std::uint8_t> known;  // a bit a row, the lowest first

    std::vector<const void*> buffers;
    std::vector<i64> sizes;

    explicit Rows(i64 n) : n(n), values(recycled::values<T>(n)), texts(nullptr, recycled::Give{0}) {}

    void missing(i64 row) {
        if (known.empty()) known.assign(n / 8 + 1, 0xff);
        known[row / 8] &= static_cast<std::uint8_t>(~(1 << row % 8));
        values[row] = T{};
        nulls++;
    }
};

template <class T>
constexpr const char* FORMAT = nullptr;
template <>
inline constexpr const char* FORMAT<i64> = "l";
template <>
inline constexpr const char* FORMAT<double> = "g";
template <>
inline constexpr const char* FORMAT<View> = "vu";

// Hands rows over: what is written to `schema` and `array` owns them from then on.
template <class T>
void hand_over(Rows<T> rows, Schema* schema, Array* array, i64 window = WINDOW) {
    auto* own = new Rows<T>(std::move(rows));
    own->buffers = {own->nulls ? own->known.data() : nullptr, own->values.get()};
    if constexpr (std::is_same_v<T, View>) {
        for (i64 at = 0; at < own->size; at += window) {
            own->buffers.push_back(own->texts.get() + at);
            own->sizes.push_back(std::min(own->size - at, 2 * window - 1));
        }
        own->buffers.push_back(own->sizes.data());
    }
    *array = {own->n, own->nulls, 0, static_cast<i64>(own->buffers.size()), 0, own->buffers.data(), nullptr, nullptr,
              [](Array* done) {
                  delete static_cast<Rows<T>*>(done->own);
                  done->release = nullptr;
              },
              own};
    constexpr i64 nullable = 2;
    *schema = {FORMAT<T>, "", nullptr, nullable, 0, nullptr, nullptr, [](Schema* done) { done->release = nullptr; }, nullptr};
}

// Columns of n rows each as the fields of one column, named by number: Polars takes that in one go.
struct Fields {
    std::vector<Array> arrays;
    std::vector<Schema> schemas;
    std::vector<std::string> names;
    std::vector<Array*> arrays_at;
    std::vector<Schema*> schemas_at;
    const void* no_nulls = nullptr;

    explicit Fields(std::size_t columns) : arrays(columns), schemas(columns) {
        for (std::size_t i = 0; i < columns; i++) {
            names.push_back(std::to_string(i));
            arrays_at.push_back(&arrays[i]), schemas_at.push_back(&schemas[i]);
        }
    }

    ~Fields() {
        for (Array& array : arrays) {
            if (array.release != nullptr) array.release(&array);
        }
    }
};

// Hands fields over, each of them written before.
inline void hand_over(std::unique_ptr<Fields> fields, i64 n, Schema* schema, Array* array) {
    const auto own = new std::shared_ptr<Fields>(std::move(fields));  // of both structs
    Fields& all = **own;
    const i64 columns = static_cast<i64>(all.arrays.size());
    for (i64 i = 0; i < columns; i++) all.schemas[i].name = all.names[i].c_str();
    const auto done = [](auto* part) {
        delete static_cast<std::shared_ptr<Fields>*>(part->own);
        part->release = nullptr;
    };
    *array = {n, 0, 0, 1, columns, &all.no_nulls, all.arrays_at.data(), nullptr, done, own};
    *schema = {"+s", "", nullptr, 0, columns, all.schemas_at.data(), nullptr, done, new std::shared_ptr<Fields>(*own)};
}

}  // namespace arrow
